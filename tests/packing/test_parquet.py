"""Parquet files of images, as the Hugging Face hub has them, and compressed tars are sources."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.advice import run_advice
from support.images import class_files, png, write_files, write_raw_tar
from support.parquet import write_parquet

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.labeling import Labeling
from pipeline.packing.pack import pack
from pipeline.packing.parquet import ParquetImages
from pipeline.packing.verify import verify
from pipeline.shards.dataset import open_split
from pipeline.shards.manifest import read_manifest

NAMES = ["dog", "cat"]  # in the order of the numbers, which is not that of the alphabet
IMAGE = {"_type": "Image"}
LABEL = {"_type": "ClassLabel", "names": NAMES}


def classes_of(out: Path, split: str = "labeled") -> dict[bytes, str]:
    data = open_split(Data(root=out), split)  # type: ignore[arg-type]
    return {content: data.classes[label] for content, label in zip(data.contents.tolist(), data.labels, strict=True)}


def test_a_data_set_of_the_hub_is_packed_with_its_names_and_splits(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": LABEL}
    for name, numbers in (
        ("train-00000-of-00002", range(20)),
        ("train-00001-of-00002", range(20, 40)),
        ("test-00000-of-00001", range(40, 50)),
    ):
        write_parquet(tmp_path / "in" / "data" / f"{name}.parquet", numbers, features=features)
    write_files(tmp_path / "in", {"README.md": b"x"})
    out = tmp_path / "out"
    report = pack(tmp_path / "in", out, shard_size=7)
    assert report.num_samples == {"labeled": 36, "val": 4, "test": 10}
    assert any("train (36 labeled, 4 val)" in note for note in report.notes)
    assert verify(out).problems == ()
    folders = {f"{NAMES[number % 2]}/{number}.png": png(number) for number in range(40, 50)}
    pack(write_files(tmp_path / "folders", folders), tmp_path / "same", split="test")
    assert classes_of(out, "test") == classes_of(tmp_path / "same", "test")
    again = pack(tmp_path / "in", out)
    assert (again.num_samples, again.num_present) == ({}, 50)


def test_one_file_is_a_source_and_a_split_that_is_typed_wins(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train-00000-of-00001.parquet", range(8), features={"image": IMAGE, "label": LABEL})
    assert pack(path, tmp_path / "val", split="val").num_samples == {"val": 8}
    assert pack(path, tmp_path / "pool", split="unlabeled").num_samples == {"unlabeled": 8}
    carve = Carve(num_labeled=2, val_fraction=0.25)
    assert pack(path, tmp_path / "carve", carve=carve).num_samples == {"labeled": 2, "unlabeled": 4, "val": 2}


@pytest.mark.parametrize("name", ["photos", "photos.pq", "photos.PARQUET"])
def test_a_file_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    path = write_parquet(tmp_path / name, range(8), features={"image": IMAGE, "label": LABEL})
    assert pack(path, tmp_path / "out").num_samples == {"labeled": 8}


def test_numbers_without_names_are_refused_and_take_those_of_a_classes_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in.parquet", range(6))
    with pytest.raises(UserError, match=r"column label holds the number 0, and there are no names .* as --classes"):
        pack(path, tmp_path / "out")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    pack(path, tmp_path / "out", classes=tmp_path / "classes.txt")
    assert read_manifest(tmp_path / "out").classes == ("dog", "cat")
    assert sorted(classes_of(tmp_path / "out").values()) == ["cat"] * 3 + ["dog"] * 3


def test_names_in_place_of_numbers_and_rows_without_a_label(tmp_path: Path) -> None:
    names = ["cat", "dog", None, "cat", ""]
    path = write_parquet(tmp_path / "in.parquet", range(5), columns={"label": [*names]})
    assert pack(path, tmp_path / "out").num_samples == {"labeled": 3, "unlabeled": 2}
    numbers: list[object] = [0, 1, -1, 0, None]
    features = {"image": IMAGE, "label": LABEL}
    path = write_parquet(tmp_path / "numbers.parquet", range(5), features=features, columns={"label": numbers})
    assert pack(path, tmp_path / "two").num_samples == {"labeled": 3, "unlabeled": 2}


def test_labels_that_are_dropped_are_unlabeled_and_of_test_left_out(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"label": ["cat", "dog", "Skip", "cat", "Skip"]}
    path = write_parquet(tmp_path / "in.parquet", range(5), columns=columns)
    labeling = Labeling(drop=("Skip",))
    assert pack(path, tmp_path / "out", labeling=labeling).num_samples == {"labeled": 3, "unlabeled": 2}
    assert pack(path, tmp_path / "test", labeling=labeling, split="test").num_samples == {"test": 3}


def test_two_columns_of_labels_are_refused_with_the_command(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"fine_label": [0, 1, 0], "coarse_label": [1, 1, 0]}
    features = {"image": IMAGE, "fine_label": LABEL, "coarse_label": LABEL}
    path = write_parquet(tmp_path / "in.parquet", range(3), features=features, columns=columns)
    with pytest.raises(UserError, match=r"fine_label, coarse_label, and it is not clear") as caught:
        pack(path, tmp_path / "out")
    run_advice(caught.value)
    assert sorted(classes_of(tmp_path / "out").values()) == ["cat", "dog", "dog"]
    with pytest.raises(UserError, match=r"--label-column fine: .*no such column; there are fine_label, coarse_label"):
        pack(path, tmp_path / "two", labeling=Labeling(label_column="fine"))


def test_rows_are_read_in_any_order_by_row_groups(tmp_path: Path) -> None:
    numbers = list(range(11))
    images = ParquetImages(tmp_path, [write_parquet(tmp_path / "in.parquet", numbers).name])
    names = list(images.names())
    for number in np.random.default_rng(0).permutation(numbers):
        assert images.read(names[number], 1 << 20) == png(int(number))
    assert images.read(names[3], 8, cut=True) == png(3)[:8]
    with pytest.raises(UserError, match="larger than"):
        images.read(names[3], 8)


def test_damaged_files_and_absent_images_are_named(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", range(6), features={"image": IMAGE, "label": LABEL}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet cannot be read as Parquet"):
        pack(tmp_path / "cut.parquet", tmp_path / "out")
    table = pa.table({"image": [{"bytes": None, "path": "1.png"}, {"bytes": png(1), "path": ""}], "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "paths.parquet")
    with pytest.raises(UserError, match=r"paths/0000000 has no bytes of an image, but at most a path"):
        pack(tmp_path / "paths.parquet", tmp_path / "out")
    pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"0 columns of the Parquet files may hold images \(text, label\)"):
        pack(tmp_path / "text.parquet", tmp_path / "out")
    for name in ("train", "part"):
        write_parquet(tmp_path / "mixed" / f"{name}.parquet", range(2), features={"image": IMAGE, "label": LABEL})
    with pytest.raises(UserError, match=r"part\.parquet does not say in its name of which split it is"):
        pack(tmp_path / "mixed", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------ compressed tars


@pytest.mark.parametrize("suffix", [".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ""])
def test_a_compressed_tar_is_read(tmp_path: Path, suffix: str) -> None:
    tar = write_raw_tar(tmp_path / "in.tar", class_files(3)).read_bytes()
    path = tmp_path / f"photos{suffix}"
    path.write_bytes({".tar.bz2": bz2, ".tar.xz": lzma}.get(suffix, gzip).compress(tar))
    assert pack(path, tmp_path / "out", split="labeled").num_samples == {"labeled": 9}
    assert verify(tmp_path / "out").problems == ()


def test_a_compressed_tar_that_is_damaged_or_none_is_named(tmp_path: Path) -> None:
    tar = write_raw_tar(tmp_path / "in.tar", class_files(3)).read_bytes()
    data = gzip.compress(tar)
    (tmp_path / "cut.tgz").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"cut\.tgz is damaged: .*copy it again"):
        pack(tmp_path / "cut.tgz", tmp_path / "out")
    for name, module in (("flipped.tgz", gzip), ("flipped.tar.bz2", bz2), ("flipped.tar.xz", lzma)):
        flipped = bytearray(module.compress(tar))
        flipped[len(flipped) // 2] ^= 0xFF
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises(UserError, match=rf"{name} is damaged: .*copy it again"):
            pack(tmp_path / name, tmp_path / "out")
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"text" * 1000))
    with pytest.raises(UserError, match=r"text\.gz is compressed and no tar inside"):
        pack(tmp_path / "text.gz", tmp_path / "out")
    (tmp_path / "short.tgz").write_bytes(gzip.compress(tar[:2000]))
    with pytest.raises(UserError, match=r"short\.tgz is cut"):
        pack(tmp_path / "short.tgz", tmp_path / "out")
