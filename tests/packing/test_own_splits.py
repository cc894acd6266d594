"""A source that holds its own splits is packed as they are called, where that is clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.advice import run_advice
from support.images import class_files, png, write_files, write_raw_tar

from pipeline.config import SPLITS, Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.manifest import read_manifest

Tree = dict[str, bytes]
CATS = "cat dog"


def below(folder: str, num_per_class: int, first: int) -> Tree:
    return {f"{folder}/{name}": data for name, data in class_files(num_per_class, CATS, first=first).items()}


def inside(split: str, num_per_class: int, first: int) -> Tree:
    """CLASS/SPLIT/NNNN.png"""
    files = class_files(num_per_class, CATS, first=first)
    return {name.replace("/", f"/{split}/"): data for name, data in files.items()}


LAYOUTS: dict[str, tuple[Tree, dict[str, int]]] = {
    "train, val and test": (
        {**below("train", 4, 0), **below("val", 1, 7000), **below("test", 2, 5000)},
        {"labeled": 8, "val": 2, "test": 4},
    ),
    "below other folders": (
        {**below("data/x/training", 4, 0), **below("data/x/valid", 1, 7000), **below("data/x/testing", 2, 5000)},
        {"labeled": 8, "val": 2, "test": 4},
    ),
    "twice in one another, with a pool": (
        {
            **below("seg_train/seg_train", 4, 0),
            **below("seg_val/seg_val", 1, 7000),
            **{f"seg_pred/seg_pred/{n}.png": png(9000 + n) for n in range(3)},
        },
        {"labeled": 8, "val": 2, "unlabeled": 3},
    ),
    "inside of classes": (
        {**inside("train", 4, 0), **inside("validation", 1, 7000), **inside("test", 2, 5000)},
        {"labeled": 8, "val": 2, "test": 4},
    ),
    "classes beside a pool": (
        {**class_files(4, CATS), **{f"unsup/{n % 2}/{n}.png": png(9000 + n) for n in range(3)}},
        {"labeled": 8, "unlabeled": 3},
    ),
    "two of train": (
        {**below("train_0", 2, 0), **below("train_1", 2, 3000), **below("val", 1, 7000)},
        {"labeled": 8, "val": 2},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_that_are_splits_are_taken_for_them_and_told(tmp_path: Path, layout: str) -> None:
    files, sizes = LAYOUTS[layout]
    for source in (write_files(tmp_path / "in", files), write_raw_tar(tmp_path / "in.tar", files)):
        out = tmp_path / f"out{source.suffix}"
        report = pack(source, out)
        assert report.num_samples == sizes
        assert report.classes == ("cat", "dog")
        assert verify(out).problems == ()
        again = pack(source, out)
        assert (again.num_samples, again.num_present) == ({}, sum(sizes.values()))
        told = [note for note in report.notes if note.startswith("SOURCE has splits of its own")]
        assert len(told) == 1


def test_val_is_carved_from_train_if_there_is_none(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {**below("train", 20, 0), **below("test", 5, 5000)})
    test = {f"test/{name[:-4]}" for name in class_files(5, CATS)}
    for name, carve, sizes in (
        ("default", None, {"labeled": 36, "val": 4, "test": 10}),
        ("half", Carve(num_labeled="all", val_fraction=0.5), {"labeled": 20, "val": 20, "test": 10}),
        ("none", Carve(num_labeled="all", val_fraction=0.0), {"labeled": 40, "test": 10}),
        ("few", Carve(num_labeled=4, val_fraction=None), {"labeled": 4, "unlabeled": 32, "val": 4, "test": 10}),
    ):
        report = pack(source, tmp_path / name, carve=carve)
        assert report.num_samples == sizes, name
        assert {
            key for shard in open_split(Data(root=tmp_path / name), "test").shards for key in shard.index.key
        } == test
    assert any("train (36 labeled, 4 val)" in note for note in pack(source, tmp_path / "default").notes)


def test_train_alone_is_no_split(tmp_path: Path) -> None:
    assert pack(write_files(tmp_path / "in", below("train", 4, 0)), tmp_path / "out").num_samples == {"labeled": 8}


UNCLEAR: dict[str, Tree] = {
    "a split beside a class": {**below("train", 2, 0), **class_files(2, "bus", first=5000)},
    "a flat test": {**below("train", 2, 0), "test/1.png": png(5001), "test/2.png": png(5002)},
    "a test of no class": {**below("train", 2, 0), "test/unknown/1.png": png(5001), "test/unknown/2.png": png(5002)},
    "splits beside another folder": {**below("train", 2, 0), **below("test", 2, 5000), **below("all/train", 2, 0)},
    "test and classes": {**class_files(2, CATS), **below("test", 2, 5000)},
}


@pytest.mark.parametrize("layout", UNCLEAR)
def test_what_is_not_clear_is_refused_with_commands(tmp_path: Path, layout: str) -> None:
    source = write_files(tmp_path / "in", UNCLEAR[layout])
    with pytest.raises(UserError, match="look like splits and not classes") as caught:
        pack(source, tmp_path / "out")
    run_advice(caught.value)
    assert verify(tmp_path / "out").problems == ()


def test_a_split_that_was_typed_is_not_mixed_with_those_of_the_source(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", LAYOUTS["train, val and test"][0])
    with pytest.raises(UserError, match=r"\(without --split they are taken for what they are called\)"):
        pack(source, tmp_path / "out", split="labeled")


def test_a_command_repeats_the_carve_to_its_last_digit(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "in", {**below("train", 4, 0), **below("test", 2, 5000), "train/cat/x.png": png(5000)}
    )
    with pytest.raises(UserError, match=r"--labels 4 --val-fraction 0\.1234567 --seed 20261126 --skip-duplicates"):
        pack(source, tmp_path / "out", carve=Carve(num_labeled=4, val_fraction=0.1234567, seed=20_261_126))


def test_an_image_in_two_of_the_splits_stays_in_the_one_that_is_measured(tmp_path: Path) -> None:
    """Labeled wins over unlabeled, and what is measured over what is trained on."""
    files = {
        **below("train", 4, 0),
        **below("val", 2, 7000),
        **below("test", 2, 5000),
        **{f"unlabeled/{n}.png": png(9000 + n) for n in range(3)},
        "train/cat/of-test.png": png(5000),
        "unlabeled/of-train.png": png(1),
        "unlabeled/of-val.png": png(7001),
        "unlabeled/twice.png": png(9001),
    }
    source, out = write_files(tmp_path / "in", files), tmp_path / "out"
    with pytest.raises(UserError, match=r"3 images .* Splits must not share images") as caught:
        pack(source, out)
    assert (out / "duplicates.csv").read_text().count("\n") == 4
    assert not (out / "manifest.json").exists()
    run_advice(caught.value)
    sizes = {split: sum(e.num_samples for e in read_manifest(out).of_split(split)) for split in SPLITS}
    assert sizes == {"labeled": 8, "unlabeled": 3, "val": 4, "test": 4}
    assert not (out / "duplicates.csv").exists()
    listed = (out / "left_out.csv").read_text()
    assert "train/cat/of-test.png,equals test/test/cat/0000.png" in listed
    assert "unlabeled/twice.png,equals unlabeled/unlabeled/1.png" in listed
    check_disjoint({split: open_split(Data(root=out), split) for split in SPLITS})
