"""Pack two half circles of points in the plane.

    python -m pipeline.demos.moons.data shards/two_moons

There are 2,000 points, of which 3 per class are labeled and the rest unlabeled, and 1,000 more each for val and test.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.arrays import F32Array, I64Array
from pipeline.config import Split
from pipeline.errors import EXIT_USER_ERROR, UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack

NUM_TRAIN, NUM_HELD_OUT, NUM_LABELED = 2000, 1000, 6
NOISE = 0.1
"""The standard deviation of the points around their half circles, which have radius 1."""


def moons(num_points: int, seed: int) -> tuple[F32Array, I64Array]:
    """Points [N, 2] and classes [N]: an upper half circle around (-1/2, -1/4), and a lower one around (1/2, 1/4)."""
    draws = np.random.default_rng(seed)
    classes = np.arange(num_points) % 2
    angle = np.pi * draws.random(num_points)
    x = np.where(classes == 0, np.cos(angle) - 0.5, 0.5 - np.cos(angle))
    y = np.where(classes == 0, np.sin(angle) - 0.25, 0.25 - np.sin(angle))
    points = np.stack([x, y], axis=1) + NOISE * draws.standard_normal((num_points, 2))
    return points.astype(np.float32), classes


def pack_moons(out: Path, *, seed: int = 0) -> None:
    """Write the points as .npy files and pack them into `out`; nothing is added when they are there already."""
    carve = Carve(num_labeled=NUM_LABELED, val_fraction=0.0, test_fraction=0.0, seed=seed)
    held_out: tuple[Split, ...] = ("val", "test")
    with tempfile.TemporaryDirectory(prefix="selftrain-") as name:
        folder = Path(name)
        _write(folder / "train", *moons(NUM_TRAIN, seed))
        pack(folder / "train", out, carve=carve)
        for number, split in enumerate(held_out, start=1):
            _write(folder / split, *moons(NUM_HELD_OUT, seed + 1000 * number))
            pack(folder / split, out, split=split)


def _write(folder: Path, points: F32Array, classes: I64Array) -> None:
    for name in ("upper", "lower"):
        (folder / name).mkdir(parents=True)
    for index, (point, label) in enumerate(zip(points, classes, strict=True)):
        np.save(folder / ("upper", "lower")[label] / f"{index:04d}.npy", point)


if __name__ == "__main__":
    try:
        target = Path(sys.argv[1] if len(sys.argv) > 1 else "shards/two_moons")
        pack_moons(target)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(f"{target}: {NUM_TRAIN:,} points, {NUM_LABELED} of them labeled")
