"""Splits that folders say hold where labels are from a table, too: a test image becomes no training image."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.advice import commands_of, run_advice
from support.images import left_out_of, png, write_files, write_raw_tar
from support.parquet import write_parquet

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.labeling import Labeling
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import open_split
from pipeline.shards.manifest import read_manifest

Tree = dict[str, bytes]
BY_TABLE = Labeling(table="labels.csv")
BY_COLUMN = Labeling(table="labels.csv", split_column="part")


def images(*folders: str, num: int = 6) -> Tree:
    """FOLDER/PLACE-NNNN.png, `num` per folder, with names that occur once."""
    return {
        f"{folder}/{index}-{n:04d}.png".lstrip("/"): png(1000 * index + n)
        for index, folder in enumerate(folders)
        for n in range(num)
    }


def table(files: Tree, parts: dict[str, str] | None = None) -> bytes:
    """Cats and dogs in turn; `parts` has the value of a column of splits, by the first folder."""
    lines = [f"{name},{'cat' if n % 2 else 'dog'}" for n, name in enumerate(sorted(files))]
    if parts is not None:
        lines = [f"{line},{parts.get(line.split('/')[0], '')}" for line in lines]
    return "\n".join(["image,label" + ",part" * (parts is not None), *lines]).encode()


def with_table(files: Tree, parts: dict[str, str] | None = None) -> Tree:
    return {**files, "labels.csv": table(files, parts)}


def keys_of(out: Path, split: str) -> set[str]:
    return {key for shard in open_split(Data(root=out), split).shards for key in shard.index.key}  # type: ignore[arg-type]


LAYOUTS: dict[str, tuple[Tree, dict[str, int]]] = {
    "flat": (images("train", "val", "test"), {"labeled": 6, "val": 6, "test": 6}),
    "class folders inside": (
        images("train/cat", "train/dog", "val/cat", "test/cat", "test/dog", num=3),
        {"labeled": 6, "val": 3, "test": 6},
    ),
    "inside of class folders": (
        images("cat/train", "cat/validation", "cat/test", "dog/train", "dog/test", num=3),
        {"labeled": 6, "val": 3, "test": 6},
    ),
    "at different depths below others": (
        images("data/old/2019/training", "data/new/testing", "data/new/valid"),
        {"labeled": 6, "test": 6, "val": 6},
    ),
    "twice in one another": (
        images("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        {"labeled": 6, "val": 6, "test": 6},
    ),
    "with a pool": (images("train", "val", "unlabeled"), {"labeled": 6, "val": 6, "unlabeled": 6}),
    "others beside a pool": (images("photos", "more", "unsup"), {"labeled": 12, "unlabeled": 6}),
    "without train": (images("val", "test"), {"val": 6, "test": 6}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_of_folders_are_taken_where_a_table_has_the_labels(tmp_path: Path, layout: str) -> None:
    files, sizes = LAYOUTS[layout]
    for source in (
        write_files(tmp_path / "in", with_table(files)),
        write_raw_tar(tmp_path / "in.tar", with_table(files)),
    ):
        out = tmp_path / f"out{source.suffix}"
        carve = Carve(num_labeled="all", val_fraction=0.0) if "val" not in sizes else None
        report = pack(source, out, labeling=BY_TABLE, carve=carve)
        assert report.num_samples == sizes
        assert sum(note.startswith("SOURCE has splits of its own") for note in report.notes) == 1
        assert verify(out).problems == ()
        again = pack(source, out, labeling=BY_TABLE, carve=carve)
        assert (again.num_samples, again.num_present) == ({}, sum(sizes.values()))


def test_test_images_are_never_drawn_by_a_carve(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", with_table(images("train", "test", num=20)))
    pack(source, tmp_path / "default", labeling=BY_TABLE)
    pack(source, tmp_path / "few", labeling=BY_TABLE, carve=Carve(num_labeled=4, val_fraction=0.2))
    sizes = {"default": {"labeled": 18, "val": 2, "test": 20}, "few": {"labeled": 4, "unlabeled": 12, "val": 4}}
    for name, expected in sizes.items():
        found = {split: len(keys_of(tmp_path / name, split)) for split in expected}
        assert found == expected
        assert keys_of(tmp_path / name, "test") == {f"test/1-{n:04d}" for n in range(20)}
    with pytest.raises(UserError, match=r"has a test split of its own; leave --test-fraction 0\.2 out"):
        pack(source, tmp_path / "x", labeling=BY_TABLE, carve=Carve(num_labeled=4, test_fraction=0.2))


def test_test_images_without_a_row_do_not_become_the_pool(tmp_path: Path) -> None:
    files = images("train", "test")
    rows = {name: data for name, data in files.items() if name.startswith("train")}
    source = write_files(tmp_path / "in", {**files, "labels.csv": table(rows)})
    carve = Carve(num_labeled="all", val_fraction=0.0)
    report = pack(source, tmp_path / "out", labeling=BY_TABLE, carve=carve)
    assert report.num_samples == {"labeled": 6}
    assert left_out_of(report.out)["test/1-0000.png"] == "it has no label"


def test_labels_of_images_in_an_unlabeled_folder_are_told_and_not_used(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", with_table(images("train", "val", "unlabeled")))
    report = pack(source, tmp_path / "out", labeling=BY_TABLE)
    assert any(note.startswith("6 images have a label in labels.csv that is not used") for note in report.notes)
    assert set(open_split(Data(root=report.out), "unlabeled").labels.tolist()) == {-1}


@pytest.mark.parametrize(
    ("folders", "label"), [(("test", "cat"), "test"), (("train", "bus"), "bus"), (("train_0", "train_1"), "bus")]
)
def test_folders_that_a_table_names_as_classes_or_that_are_all_of_train_are_no_splits(
    tmp_path: Path, folders: tuple[str, str], label: str
) -> None:
    """A test is what a garage does, a train a vehicle."""
    files = images(*folders)
    rows = "".join(f"{name},{label if n % 2 else 'dog'}\n" for n, name in enumerate(files))
    source = write_files(tmp_path / "in", {**files, "labels.csv": f"image,label\n{rows}".encode()})
    assert pack(source, tmp_path / "out", labeling=BY_TABLE).num_samples == {"labeled": 12}


UNCLEAR: dict[str, Tree] = {
    "a folder beside": images("train", "test", "other"),
    "images beside": images("", "test"),
    "one in another": images("train/test", "train/val", "test"),
    "inside of one class": images("cat/test", "cat", "dog"),
}


@pytest.mark.parametrize("layout", UNCLEAR)
def test_folders_that_are_not_clear_are_refused_and_a_column_tells(tmp_path: Path, layout: str) -> None:
    files = UNCLEAR[layout]
    source = write_files(tmp_path / "in", with_table(files))
    with pytest.raises(UserError, match=r"look like splits, and .* lies in (none|several) of them; write the split"):
        pack(source, tmp_path / "out", labeling=BY_TABLE)
    parts = {name: "test" if "test" in name else "train" for name in sorted(files)}
    rows = "".join(f"{name},{'cat' if n % 2 else 'dog'},{part}\n" for n, (name, part) in enumerate(parts.items()))
    write_files(source, {"labels.csv": f"image,label,part\n{rows}".encode()})
    with pytest.raises(UserError, match="take the splits of a column instead") as caught:
        pack(source, tmp_path / "out", labeling=BY_TABLE)
    run_advice(caught.value)
    assert keys_of(tmp_path / "out", "test") == {name.removesuffix(".png") for name in parts if "test" in name}


def test_the_commands_for_each_folder_do_what_they_say(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in put", with_table(images("train", "test", "other")))
    with pytest.raises(UserError, match="which leaves all others out") as caught:
        pack(source, tmp_path / "out", labeling=BY_TABLE)
    run_advice(caught.value)
    sizes = {entry.split: entry.num_samples for entry in read_manifest(tmp_path / "out").shards}
    assert sizes == {"labeled": 6, "test": 6}


def test_no_commands_are_given_where_a_row_could_mean_an_image_of_another_folder(tmp_path: Path) -> None:
    files = {f"{folder}/{n}.png": png(1000 * k + n) for k, folder in enumerate(("train", "test", "x")) for n in (1, 2)}
    source = write_files(tmp_path / "in", with_table(files))
    with pytest.raises(UserError, match="look like splits") as caught:
        pack(source, tmp_path / "out", labeling=BY_TABLE)
    assert commands_of(caught.value) == []


def test_a_typed_split_is_not_mixed_with_those_of_folders(tmp_path: Path) -> None:
    """As with one table per split beside folders of all."""
    files = images("train", "val")
    source = write_files(tmp_path / "in", with_table(files))
    with pytest.raises(UserError, match=r"holds train, val, .* leave --split labeled out, or pack") as caught:
        pack(source, tmp_path / "out", split="labeled", labeling=BY_TABLE)
    run_advice(caught.value)
    sizes = {entry.split: entry.num_samples for entry in read_manifest(tmp_path / "out").shards}
    assert sizes == {"labeled": 6, "val": 6}
    assert pack(source / "val", tmp_path / "one", split="test", labeling=Labeling(table=str(source / "labels.csv")))


def test_a_split_column_that_says_otherwise_than_the_folders_is_refused(tmp_path: Path) -> None:
    files = images("train", "val", "test")
    agreeing = {"train": "train", "val": "Validation", "test": ""}
    source = write_files(tmp_path / "in", with_table(files, agreeing))
    report = pack(source, tmp_path / "out", labeling=BY_COLUMN)
    assert report.num_samples == {"labeled": 6, "val": 6, "test": 6}, "an empty value leaves it to the folder"
    write_files(source, {"labels.csv": table(files, {"train": "train", "val": "val", "test": "train"})})
    with pytest.raises(
        UserError,
        match=r"--split-column part: labels\.csv has the split 'train' for test/2-0000\.png, which lies in test",
    ):
        pack(source, tmp_path / "x", labeling=BY_COLUMN)
    report = pack(source, tmp_path / "x", labeling=BY_TABLE)
    assert report.num_samples == {"labeled": 6, "val": 6, "test": 6}
    assert any("its column part was not used" in note for note in report.notes)


# -------------------------------------------------------------------------------------------------------------- Parquet


def test_splits_of_parquet_files_hold_where_a_table_has_the_labels(tmp_path: Path) -> None:
    features: dict[str, object] = {"image": {"_type": "Image"}}
    rows = ["image,label"]
    for split, first, num in (("train", 0, 20), ("test", 50, 6)):
        write_parquet(tmp_path / "in" / f"{split}-00000-of-00001.parquet", range(first, first + num), features=features)
        rows += [f"{split}-00000-of-00001/{n:07d},{'cat' if n % 2 else 'dog'}" for n in range(num)]
    write_files(tmp_path / "in", {"labels.csv": "\n".join(rows).encode()})
    report = pack(tmp_path / "in", tmp_path / "out", labeling=BY_TABLE)
    assert report.num_samples == {"labeled": 18, "val": 2, "test": 6}


def test_a_column_of_splits_in_parquet_files_is_taken_when_it_is_named_and_told_when_it_is_not(tmp_path: Path) -> None:
    parts: list[object] = [*["train"] * 4, *["val"] * 2, *["test"] * 2]
    columns: dict[str, list[object]] = {"label": ["cat", "dog"] * 4, "part": parts}
    path = write_parquet(tmp_path / "photos.parquet", range(8), columns=columns)
    report = pack(path, tmp_path / "out")
    assert report.num_samples == {"labeled": 8}
    assert any("its column part was not used; --split-column part takes the splits from it" in n for n in report.notes)
    by_column = Labeling(split_column="part")
    assert pack(path, tmp_path / "own", labeling=by_column).num_samples == {"labeled": 4, "val": 2, "test": 2}
    with pytest.raises(UserError, match=r"--split-column prt: .* no such column; there are label, part"):
        pack(path, tmp_path / "x", labeling=Labeling(split_column="prt"))
    with pytest.raises(UserError, match=r"column label holds 'cat', which is no split"):
        pack(path, tmp_path / "x", labeling=Labeling(split_column="label", label_column="part"))
    write_parquet(tmp_path / "in" / "train.parquet", range(8), columns=columns)
    with pytest.raises(
        UserError, match=r"--split-column part: train/0000004 has the split 'val', and its file is called after train"
    ):
        pack(tmp_path / "in", tmp_path / "x", labeling=by_column)


# -------------------------------------------------------------------------------------------------------- other columns


def test_a_column_of_splits_in_a_table_that_is_not_read_is_told(tmp_path: Path) -> None:
    """Class folders with a table beside them, whose labels are those of the folders."""
    files = {f"{c}/{c}{n}.png": png(1000 * k + n) for k, c in enumerate(("cat", "dog")) for n in range(20)}
    rows = "".join(f"{name},{name[:3]},{'test' if n % 2 else 'train'}\n" for n, name in enumerate(files))
    source = write_files(tmp_path / "in", {**files, "labels.csv": f"image,label,part\n{rows}".encode()})
    report = pack(source, tmp_path / "out")
    assert report.num_samples == {"labeled": 40}
    told = "labels.csv has the column part of splits, which was not used; --labels-csv labels.csv --split-column part"
    assert any(note.startswith(told) for note in report.notes)
    assert pack(source, tmp_path / "own", labeling=BY_COLUMN).num_samples == {"labeled": 18, "val": 2, "test": 20}
