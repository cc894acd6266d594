"""Vectors as samples: .npy arrays of one dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Data
from pipeline.demos.moons.data import NUM_LABELED, NUM_TRAIN, moons, pack_moons
from pipeline.errors import UserError
from pipeline.packing.pack import pack
from pipeline.packing.verify import verify
from pipeline.shards.dataset import check_disjoint, open_split
from pipeline.shards.reader import Reader, read_vectors


def write(folder: Path, vectors: dict[str, object]) -> Path:
    for name, vector in vectors.items():
        path = folder / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.asarray(vector))
    return folder


def test_vectors_are_packed_and_read_back_exactly(tmp_path: Path) -> None:
    source = write(tmp_path / "points", {"a/0": [0.1, 2.0], "a/1": [3.0, -1.0], "b/0": [0.0, 0.5]})
    pack(source, tmp_path / "packed", split="labeled")
    dataset = open_split(Data(root=tmp_path / "packed"), "labeled")
    expected = np.array([[0.1, 2.0], [3.0, -1.0], [0.0, 0.5]], np.float32)
    np.testing.assert_array_equal(read_vectors(dataset), expected)
    assert dataset.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("vector", [[], [0.0, np.nan], [np.inf]])
def test_vectors_that_are_empty_or_not_finite_are_named(tmp_path: Path, vector: list[float]) -> None:
    source = write(tmp_path / "points", {"a/0": [0.1, 2.0], "a/1": vector, "b/0": [1.0, 1.0]})
    with pytest.raises(UserError, match=r"a/1\.npy must be a vector of finite numbers"):
        pack(source, tmp_path / "packed", split="labeled")


def test_vectors_of_two_lengths_are_named(tmp_path: Path) -> None:
    pack(
        write(tmp_path / "points", {"a/0": [0.1, 2.0], "a/1": [1.0], "b/0": [2.0, 1.0]}),
        tmp_path / "packed",
        split="labeled",
    )
    with pytest.raises(UserError, match=r"a/1 has shape \[1\]; expected vectors of one length"):
        read_vectors(open_split(Data(root=tmp_path / "packed"), "labeled"))


def test_networks_for_images_refuse_vectors(tmp_path: Path) -> None:
    pack(write(tmp_path / "points", {"a/0": [0.1, 2.0], "b/0": [3.0, 1.0]}), tmp_path / "packed", split="labeled")
    data = Data(root=tmp_path / "packed", cache="never")
    with pytest.raises(UserError, match=r"a/0 must be uint8 \[H, W, 3\], not float64 \[2\]"):
        Reader(open_split(data, "labeled"), 8, data).read(np.array([0]))


def test_equal_vectors_in_two_splits_are_a_leak(tmp_path: Path) -> None:
    pack(write(tmp_path / "points", {"a/0": [0.1, 2.0], "b/0": [3.0, 1.0]}), tmp_path / "packed", split="labeled")
    with pytest.raises(UserError, match="Splits must not share images"):
        pack(write(tmp_path / "more", {"a/9": [0.1, 2.0]}), tmp_path / "packed", split="val")


def test_the_two_moons_are_a_packed_folder(tmp_path: Path) -> None:
    pack_moons(tmp_path / "moons")
    pack_moons(tmp_path / "moons")  # adds nothing
    verify(tmp_path / "moons")
    data = Data(root=tmp_path / "moons")
    sets = {split: open_split(data, split) for split in ("labeled", "unlabeled", "val", "test")}
    check_disjoint(sets)  # type: ignore[arg-type]
    assert len(sets["labeled"]) == NUM_LABELED
    assert len(sets["labeled"]) + len(sets["unlabeled"]) == NUM_TRAIN
    assert np.bincount(sets["labeled"].labels).tolist() == [3, 3]


def test_the_moons_lie_apart() -> None:
    points, classes = moons(2000, seed=0)
    upper, lower = points[classes == 0].mean(0), points[classes == 1].mean(0)
    assert upper[0] < 0 < lower[0]
    assert upper[1] > 0 > lower[1]
