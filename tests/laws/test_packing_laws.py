"""Laws of pack, over random trees of random files in folders, tars and zips."""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.images import encoded, png, write_files, write_raw_tar

from pipeline.config import SPLITS, Split
from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify

FOLDERS = [
    "cat",
    "cat",
    "dog",
    "dog",
    "dog/x.y",
    "cat/a b",
    "Cat",
    "caf\u00e9",
    "cafe\u0301",
    "train/cat",
    "test/dog",
    "unlabeled",
]
FOLDERS += ["", "__MACOSX", ".hidden", "images", "\u00e9%", "x/y/z"]
NAMES = [
    "{}.png",
    "{}.png",
    "{}.jpg",
    "{}.jfif",
    "{}",
    "{}.tif",
    "{}.npy",
    "{}.txt",
    "labels.csv",
    "{}.cls",
    "{}.avif",
    "._{}",
]
CONTENTS = [
    encoded(np.zeros((4, 4), np.uint8)),
    encoded(np.full((4, 4), 999, np.uint16)),
    png(7)[:60],
    b"",
    b"text",
    b"<html>",
    b"\x93NUMPY\x01\x00rubbish",
    b"PK\x03\x04",
    b"id,label\n1.png,cat\n",
    bytes(600),
]


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Mostly good images in class folders; few of anything else."""
    files = {f"{draw(st.sampled_from(('cat', 'dog', 'owl')))}/good{number}.png": png(number) for number in range(5)}
    for number in range(draw(st.integers(0, 6))):
        folder, name = draw(st.sampled_from(FOLDERS)), draw(st.sampled_from(NAMES)).format(number)
        good = draw(st.integers(0, 2)) > 0
        files[f"{folder}/{name}".strip("/")] = png(draw(st.integers(0, 9))) if good else draw(st.sampled_from(CONTENTS))
    return files


def write_tree(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    if kind == "folder":
        with contextlib.suppress(OSError):  # a file where another needs a folder
            write_files(folder / "in", files)
        return folder / "in"
    if kind == "tar":
        return write_raw_tar(folder / "in.tar", files)
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return folder / "in.zip"


@settings(max_examples=60, deadline=None)
@given(
    trees(),
    st.sampled_from(["folder", "tar", "zip"]),
    st.sampled_from([*SPLITS, "unlabeled", "carve", "own"]),
    st.sampled_from([True, True, False]),
    st.sampled_from([0, 0, 1, 2]),
)
def test_pack_ends_in_a_sound_folder_whose_counts_add_up_or_in_a_clear_error(
    files: dict[str, bytes], kind: str, what: Literal[Split, "carve", "own"], skip: bool, damage: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        source, out = write_tree(Path(name), kind, files), Path(name) / "out"
        if source.is_file() and damage:  # a byte of the archive is another one
            data = bytearray(source.read_bytes())
            data[(len(data) * damage) // 3] ^= 0x5A
            source.write_bytes(data)
        carve = Carve(num_labeled=3, val_fraction=0.3) if what == "carve" else None
        split = None if what == "carve" or what == "own" else what
        try:
            report = pack(
                source,
                out,
                split=split,
                carve=carve,
                bad_images="skip" if skip else "error",
                workers=1,
            )
        except UserError:
            event("refused")
            assert not (out / "manifest.json").exists()
            return
        event("packed")
        with contextlib.ExitStack() as stack:
            rows = []
            if report.left_out is not None:
                rows = list(csv.DictReader(stack.enter_context(open(report.left_out, newline=""))))
        assert report.num_files == sum(report.num_samples.values()) + len(rows)
        assert len(rows) == len(report.skipped) + sum(report.ignored.values())
        assert len({row["file"] for row in rows}) == len(rows)
        assert verify(out, workers=1).problems == ()
        again = pack(source, out, split=split, carve=carve, bad_images="skip", workers=1)
        assert (again.num_samples, again.num_present) == ({}, sum(report.num_samples.values()))
        shutil.rmtree(out)
