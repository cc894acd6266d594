"""The fast way of plain JPEGs gives the pixels of Pillow, or leaves the file to it, also where files are damaged."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.damage import attempt, mutations

from pipeline.shards import decode as module
from pipeline.shards.decode import decode, read_file
from pipeline.shards.jpeg import decode_plain, plain_size


def jpeg(height: int, width: int, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    """A JPEG of smooth noise, which has low frequencies as photographs have them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def of_pillow(data: bytes, at_least: int = 0) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if at_least:
        image.draft(None, (at_least, at_least))
    return np.asarray(image.convert("RGB"))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    mode=st.sampled_from(["RGB", "L"]),
    quality=st.sampled_from([1, 30, 75, 95, 100]),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    at_least=st.sampled_from([0, 1, 2, 4, 7, 8, 16, 33]),
    seed=st.integers(0, 9),
)
def test_plain_jpegs_have_the_pixels_of_pillow(
    height: int,
    width: int,
    mode: str,
    quality: int,
    subsampling: int,
    progressive: bool,
    at_least: int,
    seed: int,
) -> None:
    options: dict[str, Any] = {"quality": quality, "progressive": progressive}
    data = jpeg(height, width, mode, seed, subsampling=subsampling if mode == "RGB" else -1, **options)
    found = decode_plain(data, at_least, 10**6)
    assert found is not None or min(height, width) < 8
    assert np.array_equal(decode(data, "x", at_least=at_least), of_pillow(data, at_least))
    if found is not None:
        assert np.array_equal(found, of_pillow(data, at_least))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied(orientation: int) -> None:
    """XMP, which Pillow asks where EXIF tells none, has no say."""
    data = jpeg(17, 30, exif=exif(orientation), xmp=b"<x tiff:Orientation='3'/>")
    found = decode_plain(data, 0, 10**6)
    assert found is not None
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert plain_size(data) == found.shape[:2]


@pytest.mark.parametrize("options", [{"exif": exif(1), "comment": b"hello"}, {"icc_profile": b"x" * 300}])
def test_metadata_that_change_no_pixel_cost_no_speed(options: dict[str, Any]) -> None:
    data = jpeg(20, 30, **options)
    found = decode_plain(data, 0, 10**6)
    assert found is not None
    assert np.array_equal(found, of_pillow(data))


@pytest.mark.parametrize(
    "data",
    [
        jpeg(20, 30, exif=exif(1)).replace(b"\0\0MM", b"\0\0XX").replace(b"\0\0II", b"\0\0XX"),
        jpeg(20, 30, "CMYK"),
        jpeg(20, 30, xmp=b"<x tiff:Orientation='6'/>"),
        jpeg(20, 30)[:-2],
        jpeg(20, 30).replace(b"JFIF\0", b"JFXX\0"),
        b"\xff\xd8\xff\xda",
        b"",
    ],
)
def test_what_may_be_understood_in_two_ways_is_left_to_pillow(data: bytes) -> None:
    assert decode_plain(data, 0, 10**6) is None


def test_more_pixels_than_the_limit_are_left_to_the_one_who_says_so() -> None:
    assert decode_plain(jpeg(20, 30), 0, 600) is not None
    assert decode_plain(jpeg(20, 30), 0, 599) is None


def damaged() -> Iterator[bytes]:
    """JPEGs of two kinds, cut, bit-flipped, doubled in part; each bit of the headers flipped."""
    marked = {"exif": exif(6), "xmp": b"x", "comment": b"hello", "icc_profile": b"x" * 40, "restart_marker_blocks": 2}
    kinds: list[dict[str, Any]] = [{"progressive": True}, {"subsampling": 0, **marked}]
    for number, options in enumerate(kinds):
        whole = jpeg(16, 24, seed=number, optimize=True, **options)
        yield from mutations(whole, 70, seed=number)
        yield from (whole[:size] for size in range(0, len(whole), 19))
        for bit in range(16, 8 * whole.index(b"\xff\xda"), 13):
            yield whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]


def test_a_damaged_jpeg_ends_as_it_does_with_pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels, the same facts about the file, or the same error."""

    def outcome(data: bytes) -> list[object]:
        pixels, why = attempt(lambda: decode(data, "x"))
        file, why_file = attempt(lambda: read_file(data, "x"))
        return [
            why,
            why_file,
            *(a if a is None else a.tolist() for a in (pixels, file and file.values)),
            file and file[1:],
        ]

    def spy(*arguments: Any) -> Any:
        found = decode_plain(*arguments)
        taken.append(found is not None)
        return found

    taken: list[bool] = []
    for data in damaged():
        monkeypatch.setattr(module, "decode_plain", spy)
        ours = outcome(data)
        monkeypatch.setattr(module, "decode_plain", lambda *arguments: None)
        assert ours == outcome(data), data.hex()
    assert 0.1 < np.mean(taken) < 0.9  # both ways were taken
