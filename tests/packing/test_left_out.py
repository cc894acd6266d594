"""Whatever a pack leaves out is counted, told and listed; what a file is decides, and metadata cost no pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import class_files, encoded, left_out_of, picture, png, write_files, write_zip

from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.decode import decode
from pipeline.shards.magic import describe, image_kind
from pipeline.shards.metadata import without_metadata

BYTES = {
    "page.jpg": (b"<!DOCTYPE html><html>404", "an HTML page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
    "photo.avif": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF image; convert it"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC image; convert it"),
    "movie.jpg": (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "XML, such as a drawing"),
    "paper.jpg": (b"%PDF-1.7", "a PDF"),
    "zeros.jpg": (bytes(100), "zeros, as a download leaves"),
    "note.jpg": (b"see the other folder", "text ('see the other folder')"),
    "odd.jpg": (b"\x01\x02\x03\x04rest\xff", "not known (first bytes 01 02 03 04"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "not a readable image"),
}


def test_what_the_bytes_are_is_said_of_each_bad_image_and_each_is_listed(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "in", {**class_files(2), **{f"cat/{name}": data for name, (data, _) in BYTES.items()}}
    )
    write_files(
        source, {"dog/notes.txt": b"hello", "Thumbs.db": b"", "$RECYCLE.BIN/1.png": png(8), "labels.xlsx": b"PK"}
    )
    (source / "owl").mkdir()
    report = pack(source, tmp_path / "out", split="labeled", bad_images="skip")
    why = left_out_of(tmp_path / "out")
    for name, (_, what) in BYTES.items():
        assert what in why[f"cat/{name}"], name
    assert {name: why[name] for name in ("dog/notes.txt", "Thumbs.db", "$RECYCLE.BIN/1.png", "labels.xlsx")} == {
        "dog/notes.txt": "no image (.txt)",
        "Thumbs.db": "no image (hidden)",
        "$RECYCLE.BIN/1.png": "no image (hidden)",
        "labels.xlsx": "no image (.xlsx)",
    }
    assert report.num_files == 6 + len(BYTES) + 4 == sum(report.num_samples.values()) + len(why)
    assert report.left_out == tmp_path / "out" / "left_out.csv"
    assert report.empty_folders == ("owl",)


def test_images_are_told_by_their_bytes_whatever_they_are_called(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(5)).save(buffer, "JPEG")
    names = {"cat/a.jfif": buffer.getvalue(), "cat/b": png(1), "cat/c.download": png(2), "dog/d.JPG_large": png(3)}
    assert pack(write_files(tmp_path / "in", names), tmp_path / "out", split="labeled").num_samples == {"labeled": 4}


def test_raw_photographs_and_texts_are_not_taken_for_images(tmp_path: Path) -> None:
    """A raw photograph begins like a TIFF, whose first image is a thumbnail."""
    tiff = io.BytesIO()
    Image.fromarray(picture(5)).save(tiff, "TIFF")
    others = {"cat/raw.nef": tiff.getvalue(), "cat/BMW.md": b"BMW", "dog/P5.txt": b"P5 is a class"}
    report = pack(write_files(tmp_path / "in", {**class_files(1), **others}), tmp_path / "out", split="labeled")
    assert (report.num_samples, report.ignored) == ({"labeled": 3}, {".nef": 1, ".md": 1, ".txt": 1})


def test_archives_inside_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inside = write_zip(tmp_path / "in" / "photos.zip", class_files(1))
    with pytest.raises(
        UserError, match=r"holds no images; found: 1 \.zip; give an archive itself, such as .*photos\.zip"
    ):
        pack(tmp_path / "in", tmp_path / "out", split="labeled")
    assert pack(inside, tmp_path / "out", split="labeled").num_samples == {"labeled": 3}


def test_each_source_has_its_lines_in_the_list_and_the_same_command_repeats_them(tmp_path: Path) -> None:
    for name, first in (("one", 0), ("two", 5000)):
        write_files(tmp_path / name, {**class_files(2, first=first), f"{name}.txt": b"x"})
        pack(tmp_path / name, tmp_path / "out", split="labeled")
        pack(tmp_path / name, tmp_path / "out", split="labeled")
    assert left_out_of(tmp_path / "out") == {"one.txt": "no image (.txt)", "two.txt": "no image (.txt)"}
    assert verify(tmp_path / "out").problems == ()


def test_a_vector_among_images_is_refused_at_once(tmp_path: Path) -> None:
    """It would end the run after the teacher's training."""
    vector = io.BytesIO()
    np.save(vector, np.ones(512, np.float32))
    source = write_files(tmp_path / "in", {**class_files(4), "cat/features.npy": vector.getvalue()})
    for bad_images in ("error", "skip"):
        with pytest.raises(UserError, match=r"cat/features\.npy is a vector, and 12 other samples are images"):
            pack(source, tmp_path / "out", split="labeled", bad_images=bad_images)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- metadata


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes, *, last: bool = False) -> bytes:
    whole = png(1)
    place = len(whole) - 12 if last else 33
    return whole[:place] + chunk(kind, data) + whole[place:]


ODD = {
    "exif that is none": with_chunk(b"eXIf", b"Exif\0\0garbage"),
    "a profile in letters": with_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  20\n4578696600004d4d002a0zz"),
    "a text that inflates": with_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 24))),
    "a text that inflates, last": with_chunk(b"iTXt", b"n\0\1\0\0\0" + zlib.compress(bytes(1 << 24)), last=True),
    "a broken colour profile": with_chunk(b"iCCP", b"icc\0\0" + b"no zlib"),
    "an exif that points outside": with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\0"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_metadata_cost_no_pixels(what: str) -> None:
    assert np.array_equal(decode(ODD[what], "x"), picture(1))


def test_odd_metadata_are_counted(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**class_files(1, "dog"), "cat/1.png": ODD["exif that is none"]})
    write_files(source, {"cat/2.png": with_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 24)))})
    assert pack(source, tmp_path / "out", split="labeled").odd_metadata == 2


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_a_jpeg_without_its_segments_has_the_same_pixels(mode: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    buffer = io.BytesIO()
    Image.fromarray(picture(3, 32)).convert(mode).save(buffer, "JPEG", exif=exif, comment=b"hello")
    bare = without_metadata(buffer.getvalue())
    assert len(bare) < len(buffer.getvalue())
    assert np.array_equal(decode(bare, "x"), decode(buffer.getvalue(), "x"))
    assert without_metadata(b"GIF89a") == b"GIF89a"


def test_more_frames_than_the_first_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(3)]
    for kind in ("gif", "tiff", "png"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind.upper(), save_all=True, append_images=frames[1:])
        write_files(
            tmp_path / "in", {f"{kind}/1.{kind}": buffer.getvalue(), f"{kind}/2.png": encoded(picture(len(kind)))}
        )
    assert pack(tmp_path / "in", tmp_path / "out", split="unlabeled").more_frames == 3


def test_kinds_of_bytes_are_told() -> None:
    assert [image_kind(data) for data in (b"", b"RIFF", b"RIFF1234WEBP", b"GIF89a", png(0))] == [
        None,
        None,
        "webp",
        "gif",
        "png",
    ]
    for data in (b"", b"\0", b"\xff", b"ustar", bytes(range(256)) * 2):
        assert describe(data)
