"""Which members of foreign tars are samples: all that can be are used, and the others are counted and listed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import picture, png, write_raw_tar

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.shards.dataset import Dataset, left_out, open_split
from pipeline.shards.tar import walk


def labeled(tmp_path: Path, files: list[tuple[str, bytes]], classes: str = "cat\ndog\n", **settings: str) -> Dataset:
    (tmp_path / "classes.txt").write_text(classes)
    tar = write_raw_tar(tmp_path / "t" / "train-000000.tar", files)
    data = {"labeled": [tar], "classes": tmp_path / "classes.txt", **settings}
    return open_split(Data.model_validate(data), "labeled")


def test_names_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    """By the rule of webdataset they are all called IMG_2021, so that one of them would be used."""
    keys = [f"photo_{n}" if n < 12 else f"d/IMG_2021.05.{n}" for n in range(20)]
    files = [file for n, key in enumerate(keys) for file in ((f"{key}.jpg", png(n)), (f"{key}.cls", b"%d" % (n % 2)))]
    dataset = labeled(tmp_path, files)
    assert [dataset.key(row).partition("/")[2] for row in range(20)] == keys
    assert dataset.labels.tolist() == [0, 1] * 10


def test_other_fields_of_a_sample_are_no_images_of_their_own_but_are_told(tmp_path: Path) -> None:
    """KEY.seg.png beside KEY.png is a mask."""
    files = [
        ("1.png", png(1)),
        ("1.seg.png", png(2)),
        ("1.cls", b"0"),
        ("1.json", b"{}"),
        ("LICENSE", b""),
        ("2.png", png(3)),
    ]
    dataset = labeled(tmp_path, files, bad_images="skip")
    assert (len(dataset), dataset.ignored) == (1, {".png": 1, ".json": 1, "no extension": 1})
    tar = tmp_path / "t" / "train-000000.tar"
    assert dict(left_out(dataset)) == {
        f"{tar}: 2": "no label (.cls)",
        f"{tar}: 1.seg.png": "belongs to no sample",
        f"{tar}: 1.json": "belongs to no sample",
        f"{tar}: LICENSE": "belongs to no sample",
    }


@pytest.mark.parametrize(
    ("suffix", "kind"), [("gif", "GIF"), ("bmp", "BMP"), ("tif", "TIFF"), ("jfif", "JPEG"), ("ppm", "PPM")]
)
def test_every_kind_that_pack_reads_is_read_from_tars(tmp_path: Path, suffix: str, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(1)).save(buffer, kind)
    tar = write_raw_tar(tmp_path / "u.tar", {f"1.{suffix}": buffer.getvalue(), "2.png": png(2)})
    assert len(open_split(Data(unlabeled=(tar,)), "unlabeled")) == 2


@pytest.mark.parametrize("skip", ["error", "skip"])
def test_a_label_out_of_range_is_no_bad_image(tmp_path: Path, skip: str) -> None:
    """Skipped as one, a class would be dropped and all others renamed."""
    files = [file for n in range(6) for file in ((f"{n}.jpg", png(n)), (f"{n}.cls", b"%d" % (1 + n % 3)))]
    with pytest.raises(UserError, match=r"2 of 6 samples have a label out of range, e\.g\. 2 has 3, .*begin at 1"):
        labeled(tmp_path, files, "a\nb\nc\n", bad_images=skip)
    with pytest.raises(UserError, match=r"4 of 6 samples .* 2 classes \(ids 0 to 1\); name all classes"):
        labeled(tmp_path, files, "a\nb\n", bad_images=skip)


def test_compressed_tars_in_a_folder_are_not_passed_over(tmp_path: Path) -> None:
    write_raw_tar(tmp_path / "t" / "a.tar", {"1.png": png(1)})
    (tmp_path / "t" / "b.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"holds b\.tar\.gz, .*decompress"):
        open_split(Data(unlabeled=(tmp_path / "t",)), "unlabeled")


def test_vectors_among_images_are_refused(tmp_path: Path) -> None:
    vector = io.BytesIO()
    np.save(vector, np.ones(3, np.float32))
    tar = write_raw_tar(tmp_path / "u.tar", {"1.png": png(1), "2.npy": vector.getvalue()})
    with pytest.raises(UserError, match=r"2 is a vector, and 1 other samples are images"):
        open_split(Data(unlabeled=(tar,)), "unlabeled")


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hard_links_are_the_files_that_they_link_to(tmp_path: Path, format_: int) -> None:
    """tar writes one for the second name of a file, also with --dereference."""
    long = "x" * 150 + ".png"
    with tarfile.open(tmp_path / "a.tar", "w", format=format_) as tar:
        for name, target in (("1.png", ""), (long, ""), ("2.png", "1.png"), ("3.png", long), ("4.png", "")):
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = tarfile.LNKTYPE, target
                tar.addfile(info)
            else:
                info.size = len(png(len(name)))
                tar.addfile(info, io.BytesIO(png(len(name))))
    found = {member.name: (member.offset, member.size) for member in walk(tmp_path / "a.tar")}
    assert list(found) == ["1.png", long, "2.png", "3.png", "4.png"]
    assert found["2.png"] == found["1.png"]
    assert found["3.png"] == found[long]
    assert len(open_split(Data(unlabeled=(tmp_path / "a.tar",)), "unlabeled")) == 5


def test_a_label_of_more_bytes_than_a_number_has_is_no_label(tmp_path: Path) -> None:
    """Its first 64 bytes alone would be another number."""
    with pytest.raises(UserError, match="is not a class id"):
        labeled(tmp_path, [("1.png", png(1)), ("1.cls", b"1" + b" " * 63 + b"0")])
