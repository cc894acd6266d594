"""What people type after `selftrain pack`, and what it tells them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import selftrain_here as selftrain
from support.images import class_files, digit_files, png, write_files

from pipeline.errors import UserError
from pipeline.shards.manifest import read_manifest


def test_a_fraction_alone_carves_all_labels(tmp_path: Path) -> None:
    write_files(tmp_path / "in", digit_files(-40))
    selftrain("pack", tmp_path / "in", "--out", tmp_path / "out", "--val-fraction", "0.25")
    sizes = {entry.split: entry.num_samples for entry in read_manifest(tmp_path / "out").shards}
    assert sizes == {"labeled": 30, "val": 10}


def test_labels_are_a_number_or_all(tmp_path: Path) -> None:
    write_files(tmp_path / "in", class_files(2))
    with pytest.raises(UserError, match="--labels many is no number; give one, or all"):
        selftrain("pack", tmp_path / "in", "--out", tmp_path / "out", "--labels", "many")


def test_what_was_taken_for_what_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{n},{'cat' if n < 30 else 'dog' if n < 34 else 'Skip'}\n" for n in range(40))
    files = {f"images/{n}.png": png(n) for n in range(42)}
    write_files(tmp_path / "in", {**files, "labels.csv": f"image,label\n{rows}".encode()})
    text = selftrain(
        "pack",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
        "--labels-csv",
        "labels.csv",
        "--labels",
        "20",
        "--drop",
        "Skip",
    )
    told = " ".join(text.split())
    assert "labels are from labels.csv, columns image and label" in told
    assert "2 images have no row in labels.csv" in told
    assert "6 images of Skip are unlabeled" in told
    assert "fewer labels than an even share, as all that val and test leave of a rare class: dog 3" in told
    assert "1 file was left out; " in told


def test_all_classes_are_named_or_how_many_more_there_are(tmp_path: Path) -> None:
    names = [f"class{number:02d}" for number in range(43)]
    for number in (20, 43):
        files = {f"{name}/{k}.png": png(number * 100 + k) for k, name in enumerate(names[:number])}
        out = tmp_path / str(number)
        text = selftrain("pack", write_files(tmp_path / f"in{number}", files), "--out", out, "--split", "labeled")
        told = " ".join(text.split())
        assert (f"20 classes: {', '.join(names[:20])}" if number == 20 else "class39 and 3 more") in told
