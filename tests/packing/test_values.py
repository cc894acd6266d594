"""Values that do not use the range of their kind are told, and scaled where the user says how."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import encoded, picture, png, write_files, write_raw_tar

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.outcome import PackReport
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import open_split
from pipeline.shards.decode import decode
from pipeline.shards.index import read_sample
from pipeline.shards.manifest import read_manifest
from pipeline.shards.tar import open_shard
from pipeline.shards.values import ValueRange, parse_range

GREY = np.stack([picture(number)[:, :, 0] for number in range(6)])
"""[6, 8, 8]: all values from 0 to 255 in six images."""


def tiff(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write(folder: Path, arrays: np.ndarray, encode: object = tiff, suffix: str = "tif") -> Path:
    return write_files(folder, {f"{'ab'[n % 2]}/{n}.{suffix}": encode(a) for n, a in enumerate(arrays)})  # type: ignore[operator]


def pixels(out: Path) -> dict[str, np.ndarray]:
    """Key -> grey values of what was packed as labeled."""
    found = {}
    for shard in open_split(Data(root=out), "labeled").shards:
        with open_shard(shard.path) as descriptor:
            for row, key in enumerate(shard.index.key):
                found[key] = decode(read_sample(descriptor, shard.index, row), key)[:, :, 0]
    return found


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("encode", [tiff, npy, lambda values: encoded(values)])
def test_fewer_bits_in_16_are_refused_and_scaled_by_the_option_that_the_message_names(
    tmp_path: Path, bits: int, encode: object
) -> None:
    """Taken as 16 bits they would be nearly black, all of them the same image."""
    deep = np.round(GREY / 255 * (2**bits - 1)).astype(np.uint16)
    source = write(tmp_path / "in", deep, encode, "npy" if encode is npy else "tif")
    with pytest.raises(UserError, match=rf"6 images, such as a/0\.\w+, hold values .*--value-range 0,{2**bits - 1}"):
        pack(source, tmp_path / "out", split="labeled")
    assert not (tmp_path / "out" / "manifest.json").exists()
    report = pack(source, tmp_path / "out", split="labeled", value_range=ValueRange(0, 2**bits - 1))
    assert (report.num_samples, report.num_duplicates) == ({"labeled": 6}, 0)
    for number, grey in enumerate(GREY):
        assert np.array_equal(pixels(tmp_path / "out")[f"{'ab'[number % 2]}/{number}"], grey)
    assert verify(tmp_path / "out").problems == ()
    assert read_manifest(tmp_path / "out").value_range == (0, 2**bits - 1)


def test_all_16_bits_need_no_option(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) << 8) + 99
    assert pack(write(tmp_path / "in", deep), tmp_path / "out", split="labeled").value_range is None
    assert np.array_equal(pixels(tmp_path / "out")["a/0"], GREY[0])


@pytest.mark.parametrize(
    ("arrays", "option"),
    [
        ((GREY / 255).astype(np.float32), "0,1"),
        (GREY.astype(np.float32) * 4 - 300, "-300,720"),
        (GREY.astype(np.int32) - 100, "-100,155"),
        (GREY // 16, "0,15"),
        ((GREY > 127).astype(np.uint8), "0,1"),
    ],
    ids=["floats of 0 to 1", "floats", "negative numbers", "four bits in eight", "zeros and ones"],
)
def test_other_ranges_are_refused_even_if_bad_images_are_skipped(
    tmp_path: Path, arrays: np.ndarray, option: str
) -> None:
    source = write(tmp_path / "in", arrays)
    with pytest.raises(UserError, match=f"hold .*--value-range {option}"):
        pack(source, tmp_path / "out", split="labeled", bad_images="skip")
    pack(source, tmp_path / "out", split="labeled", value_range=parse_range(option))
    low, high = arrays.min(), arrays.max()
    expected = np.rint((arrays[0].astype(np.float64) - low) / (high - low) * 255)
    assert np.abs(pixels(tmp_path / "out")["a/0"] - expected).max() <= 1


def test_auto_takes_the_range_of_the_whole_source_and_later_packs_follow_it(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 9 + 50
    report = pack(write(tmp_path / "in", deep), tmp_path / "out", split="labeled", value_range="auto")
    assert report.value_range == (deep.min(), deep.max())
    assert np.abs(pixels(tmp_path / "out")["b/3"] - GREY[3].astype(float)).max() <= 1
    more = write(tmp_path / "more", deep[:, ::-1].copy())
    assert pack(more, tmp_path / "out", split="val").value_range == report.value_range
    assert pack(more, tmp_path / "out", split="val", value_range="auto").num_present == 6
    with pytest.raises(UserError, match=r"--value-range 0,9: .* was packed with 50,2345; leave it out"):
        pack(more, tmp_path / "out", split="val", value_range=ValueRange(0, 9))


def test_a_recorded_range_neither_clips_nor_blackens_in_silence(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(write(tmp_path / "in", GREY.astype(np.uint16) * 16), out, split="labeled", value_range=ValueRange(0, 4095))
    brighter = write(tmp_path / "brighter", GREY[:, ::-1].astype(np.uint16) * 200)
    for value_range in (None, "auto"):
        with pytest.raises(UserError, match=r"from 0 to 51000, and this folder was packed with --value-range 0,4095"):
            pack(brighter, out, split="val", value_range=value_range)  # type: ignore[arg-type]
    photographs = write_files(tmp_path / "photographs", {f"{'ab'[n % 2]}/{n}.png": png(900 + n) for n in range(4)})
    with pytest.raises(UserError, match=r"--value-range 0,4095 is for more than 8 bits, which no image has; drop it"):
        pack(photographs, out, split="test", value_range=ValueRange(0, 4095))
    pack(photographs, out, split="test", value_range="auto")
    dataset = open_split(Data(root=out), "test")
    with open_shard(dataset.shards[0].path) as descriptor:
        kept = decode(read_sample(descriptor, dataset.shards[0].index, 0), "x")
    assert any(np.array_equal(kept, picture(900 + n)) for n in range(4))


def test_images_of_8_bits_beside_deep_ones_keep_their_values(tmp_path: Path) -> None:
    source = write(tmp_path / "in", GREY.astype(np.uint16) * 16)
    write_files(source, {"a/photo.png": png(77)})
    pack(source, tmp_path / "out", split="labeled", value_range=ValueRange(0, 4080))
    assert np.array_equal(pixels(tmp_path / "out")["a/photo"], picture(77)[:, :, 0])
    assert np.array_equal(pixels(tmp_path / "out")["b/5"], GREY[5])


def test_colours_of_16_bits_that_use_few_are_refused(tmp_path: Path) -> None:
    """Pillow reads their high bytes alone, so that nothing is left to scale."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def deep_png(values: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        kind = 2 if values.shape[2] == 3 else 6
        header = struct.pack(">IIBBBBB", *values.shape[1::-1], 16, kind, 0, 0, 0)
        body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body

    colours = np.stack([picture(number) for number in range(4)]).astype(np.uint16)
    with pytest.raises(UserError, match=r"4 images, .* colours of 16 bits but use 12 at most"):
        pack(write(tmp_path / "in", colours * 16, deep_png, "png"), tmp_path / "out", split="labeled")
    clear = np.concatenate([colours * 16, np.full((4, 8, 8, 1), 40_000, np.uint16)], axis=3)  # laid over white
    with pytest.raises(UserError, match=r"4 images, .* colours of 16 bits but use 12 at most"):
        pack(write(tmp_path / "clear", clear, deep_png, "png"), tmp_path / "out", split="labeled")
    pack(write(tmp_path / "full", colours * 257, deep_png, "png"), tmp_path / "full-out", split="labeled")
    assert np.array_equal(pixels(tmp_path / "full-out")["b/1"], picture(1)[:, :, 0])


def test_foreign_tars_are_asked_the_same(tmp_path: Path) -> None:
    tar = write_raw_tar(tmp_path / "u.tar", {f"{n}.png": encoded(a) for n, a in enumerate(GREY.astype(np.uint16))})
    with pytest.raises(UserError, match=r"data\.unlabeled \(.*u\.tar\): 6 images, .*--value-range 0,255"):
        open_split(Data(unlabeled=(tar,)), "unlabeled")
    report: PackReport = pack(tar, tmp_path / "out", split="unlabeled", value_range=ValueRange(0, 255))
    assert report.num_samples == {"unlabeled": 6}


@pytest.mark.parametrize("text", ["0", "5,5", "9,1", "0,inf", "a,b", "0,1,2", ""])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--value-range"):
        parse_range(text)


def test_each_append_is_asked_whether_its_images_are_dark(tmp_path: Path) -> None:
    """A range that was recorded once is no reason to take zeros and ones as they are."""
    for number, split in enumerate(("labeled", "val")):
        masks = (GREY[:, :, ::-1] if number else GREY) // 128
        source = write(tmp_path / split, masks)
        with pytest.raises(UserError, match="--value-range 0,1"):
            pack(source, tmp_path / "out", split=split)  # type: ignore[arg-type]
        pack(source, tmp_path / "out", split=split, value_range=ValueRange(0, 1))  # type: ignore[arg-type]


def test_deep_images_that_were_taken_as_they_are_fix_that_for_the_folder(tmp_path: Path) -> None:
    pack(write(tmp_path / "in", (GREY.astype(np.uint16) << 8)), tmp_path / "out", split="labeled")
    more = write(tmp_path / "more", GREY[:, ::-1].astype(np.uint16) * 16)
    with pytest.raises(UserError, match=r"--value-range 0,4095: .* was packed with 0,65535"):
        pack(more, tmp_path / "out", split="val", value_range=ValueRange(0, 4095))
    with pytest.raises(UserError, match="in place of 16 bits"):
        pack(more, tmp_path / "out", split="val")


def test_one_bright_image_does_not_make_the_others_bright(tmp_path: Path) -> None:
    deep = np.concatenate([np.tile(GREY, (3, 1, 1)) * np.uint16(16), np.full((1, 8, 8), 65535, np.uint16)])
    deep[:-1, 0, 0] = np.arange(18)  # no two are equal
    with pytest.raises(UserError, match=r"18 of them none above 4080, in place of 16 bits.*--value-range 0,4095"):
        pack(write(tmp_path / "in", deep), tmp_path / "out", split="labeled")


def test_a_range_that_is_not_that_of_the_images_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", GREY.astype(np.uint16) * 16)
    for text in ("0,1", "0,1000000", "5000,9000"):
        with pytest.raises(UserError, match=rf"--value-range {text} is not that of the images: .* from 0 to 4080"):
            pack(source, tmp_path / "out", split="labeled", value_range=parse_range(text))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_make_an_image_bad(tmp_path: Path, value: float) -> None:
    floats = (GREY / 255).astype(np.float32)
    floats[3, 2, 2] = value
    for encode, suffix in ((tiff, "tif"), (npy, "npy")):
        source = write(tmp_path / suffix, floats, encode, suffix)
        with pytest.raises(UserError, match=rf"b/3\.{suffix} .*not finite"):
            pack(source, tmp_path / "out", split="labeled", value_range="auto")


@pytest.mark.parametrize("shape", [(4, 4, 4), (3, 8, 8), (8, 8, 1), (2, 2, 2, 2), (0, 3)])
def test_arrays_of_other_shapes_are_bad_images_with_a_range_too(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = write(tmp_path / "in", (GREY / 255).astype(np.float32), npy, "npy")
    write_files(source, {"a/odd.npy": npy(np.zeros(shape, np.float32))})
    with pytest.raises(UserError, match=r"a/odd\.npy must be \[H, W\] or \[H, W, 3\]"):
        pack(source, tmp_path / "out", split="labeled", value_range=ValueRange(0, 1))


def test_a_range_is_told_so_that_it_can_be_typed_again(tmp_path: Path) -> None:
    floats = (GREY / 257 + 0.0126731).astype(np.float32)
    report = pack(write(tmp_path / "in", floats), tmp_path / "out", split="labeled", value_range="auto")
    assert report.value_range is not None
    more = write(tmp_path / "more", floats[:, ::-1].copy())
    again = parse_range(str(ValueRange(*report.value_range)))
    assert pack(more, tmp_path / "out", split="val", value_range=again).num_samples == {"val": 6}


def test_a_deep_tiff_in_which_white_is_zero_is_turned_around(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(0xFFFF - (GREY[0].astype(np.uint16) << 8)).save(buffer, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode(buffer.getvalue(), "x")[:, :, 0], GREY[0])
