"""Every kind of image file becomes the right RGB pixels, or a clear error."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.images import picture, png

import pipeline.models  # noqa: F401  # torchvision cannot be imported beside a CPU torch without it
from pipeline.config import Interpolation
from pipeline.errors import UserError
from pipeline.shards.decode import content_hash, decode, encode_png, resize_to, stored_format

from torchvision.transforms import CenterCrop  # isort: skip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GRADIENT = np.add.outer(np.arange(16), np.arange(24)).astype(np.uint8) * 6


def test_exif_rotation_is_applied() -> None:
    image = Image.fromarray(np.repeat(GRADIENT[:, :, None], 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to view
    for kind in ("JPEG", "PNG", "WEBP"):
        upright = decode(encoded(image, kind), "x")
        turned = decode(encoded(image, kind, exif=exif), "x")
        assert turned.shape == (24, 16, 3)
        assert np.array_equal(turned, np.rot90(upright, -1))


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(decode(encoded(red, "JPEG"), "x").astype(int) - [255, 0, 0]).max() < 8


def test_greyscale_and_one_bit_become_rgb() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(GRADIENT), "PNG"), "x"), GRADIENT[:, :, None].repeat(3, 2))
    bits = decode(encoded(Image.fromarray(GRADIENT > 60), "PNG"), "x")
    assert np.array_equal(bits[:, :, 0], (GRADIENT > 60) * np.uint8(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_loses_its_low_byte_and_nothing_else(kind: str) -> None:
    deep = (GRADIENT.astype(np.uint16) << 8) + 37
    assert np.array_equal(decode(encoded(Image.fromarray(deep), kind), "x")[:, :, 1], GRADIENT)


def test_palette_keeps_its_colours() -> None:
    image = Image.fromarray(picture(0)).quantize(16)
    assert np.array_equal(decode(encoded(image, "PNG"), "x"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    clear = Image.new(mode, (4, 4), 0)
    assert (decode(encoded(clear, "PNG"), "x") == 255).all()


def test_transparent_palette_colour_is_laid_over_white() -> None:
    image = Image.fromarray(np.zeros((4, 4), np.uint8), "L").convert("P")
    assert (decode(encoded(image, "PNG", transparency=0), "x") == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert np.array_equal(decode(data, "x"), np.asarray(frames[0]))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [12_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    with pytest.raises(UserError, match=r"bomb\.png .*pixels"):
        decode(bomb, "bomb.png")


def test_empty_and_non_image_files_are_named() -> None:
    with pytest.raises(UserError, match=r"a/b\.jpg is empty"):
        decode(b"", "a/b.jpg")
    with pytest.raises(UserError, match=r"a/b\.jpg is not a readable image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0 would run ghostscript", "a/b.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_file_that_is_cut_anywhere_is_an_error_or_whole(kind: str) -> None:
    """Never a grey or a black image. Some formats end with bytes that no pixel needs."""
    data = encoded(Image.fromarray(picture(1, 12)), kind)
    whole = decode(data, "x")
    for size in range(len(data)):
        with contextlib.suppress(UserError):
            assert np.array_equal(decode(data[:size], "x"), whole), size


@pytest.mark.parametrize("rest", [b"", b"T\0\0", b"T" + b"\0" * 20])
def test_a_png_that_is_cut_before_its_pixels_is_no_black_image(rest: bytes) -> None:
    """Pillow makes a black one of a PNG without IDAT, and of one whose first loading, for its EXIF, has failed."""
    whole = png(0)
    cuts = [whole[:33], whole[:33] + png_chunk(b"tEXt", b"a\0b") + whole[33:40] + rest, whole[:40] + rest]
    for data in (*cuts, whole[:33] + png_chunk(b"IEND", b"")):
        with pytest.raises(UserError):
            decode(data, "x")


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", png(0)[:40], b"RIFF\0\0\0\0WEBPVP8 ", b"\x93NUMPY\x01\x00"]),
)
def test_garbage_is_a_user_error_whatever_it_looks_like(rest: bytes, head: bytes) -> None:
    with pytest.raises(UserError):
        decode(head + rest, "x")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_npy_is_taken_as_it_is() -> None:
    assert np.array_equal(decode(npy(picture(3)), "x"), picture(3))
    assert decode(npy(GRADIENT), "x").shape == (16, 24, 3)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_npy_of_another_kind_is_refused(array: np.ndarray) -> None:
    with pytest.raises(
        UserError, match=r"must be \[H, W\] or|float64 pixels, whose range is unknown; .* --value-range"
    ):
        decode(npy(array), "x")


def test_pickled_npy_is_never_loaded() -> None:
    with pytest.raises(UserError, match="not a readable"):
        decode(npy(np.array([print, 1], object)), "x")


def test_content_depends_on_pixels_and_shape_alone() -> None:
    image = picture(5)
    assert content_hash(image) == content_hash(decode(encode_png(image), "x")) == content_hash(decode(npy(image), "x"))
    assert content_hash(np.zeros((2, 8, 3), np.uint8)) != content_hash(np.zeros((8, 2, 3), np.uint8))


def test_stored_formats_are_told_by_their_bytes() -> None:
    image = Image.fromarray(picture(0))
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": None, "BMP": None, "TIFF": None, "PPM": None}
    assert {kind: stored_format(encoded(image, kind)) for kind in kinds} == kinds


def test_resize_takes_the_centre_square() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200
    assert (resize_to(image, 20) == 200).all()
    whole = np.asarray(Image.fromarray(image).resize((30, 10), Image.Resampling.BICUBIC))  # shorter side, then crop
    assert np.array_equal(resize_to(image, 10), whole[:, 10:20])
    fitting = picture(1, 32)
    assert resize_to(fitting, 32) is fitting


@pytest.mark.parametrize("sides", [(8, 13), (13, 8), (8, 9), (8, 11), (8, 8), (15, 8)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_an_image_stored_at_its_size_is_cut_where_torchvision_cuts_it_and_not_blurred(
    sides: tuple[int, int], interpolation: Interpolation
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    theirs = np.asarray(CenterCrop(8)(Image.fromarray(image)))
    assert np.array_equal(resize_to(image, 8, interpolation), theirs)


def test_a_long_strip_costs_no_memory() -> None:
    assert resize_to(np.zeros((1, 1_000_000, 3), np.uint8), 32).shape == (32, 32, 3)


def test_scaled_decoding_never_goes_below_what_was_asked_for() -> None:
    data = encoded(Image.fromarray(picture(2, 256)), "JPEG")
    assert decode(data, "x", at_least=64).shape == (64, 64, 3)
    assert decode(data, "x", at_least=65).shape == (128, 128, 3)
    assert decode(data, "x", at_least=999).shape == (256, 256, 3)


def test_squashing_keeps_the_whole_image_and_the_centre_does_not() -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    image[:, :10] = 255  # of the left margin, which the centre square has not
    assert resize_to(image, 30).max() == 0
    squashed = resize_to(image, 30, crop_mode="squash")
    assert squashed.shape == (30, 30, 3)
    assert squashed[:, :2].min() == 255
    assert squashed[:, 6:].max() == 0
