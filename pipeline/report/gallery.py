"""Pseudo-labeled images to look at: the surest, the least sure of the kept, and those known to be wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.arrays import BoolArray, I32Array, U8Array
from pipeline.config import Data, changed
from pipeline.selection.alignment import Labels
from pipeline.selection.targets import open_selection
from pipeline.shards.dataset import Dataset
from pipeline.shards.reader import Reader

TILE_PX = 64
MAX_TILE_PX = 96
NUM_TILES = 24
Rows = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Tile:
    """One image with its pseudo-label."""

    label: str
    confidence: float
    truth: str | None
    """The true class; None if it is not known."""


@dataclass(frozen=True)
class Gallery:
    """Images side by side in one PNG, one tile per image."""

    title: str
    note: str
    sprite: bytes
    tile_px: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labels of one round beside their images, and compared with truth where it is known."""

    galleries: tuple[Gallery, ...]
    num_known: int
    """The number of unlabeled images whose truth is known."""
    accuracy: float | None
    """The share of right pseudo-labels among those; None if there are none."""
    num_known_kept: int
    """The number of kept images whose truth is known."""
    kept_accuracy: float | None
    """The share of right pseudo-labels among those; None if there are none."""


def inspect_pseudo_labels(dataset: Dataset, selection: Path, data: Data, image_size: int) -> PseudoLabels:
    """Read one round's pseudo-labels, as its selection saw them, and the images that are worth a look."""
    selected, store = open_selection(selection, dataset)
    kept = selected.rows.astype(np.int64)
    truth = dataset.truth()
    if truth is None:
        truth = np.full(len(dataset), -1, np.int32)
    known, right = truth >= 0, truth == store.label
    order = kept[np.lexsort((kept, -store.log_odds[kept]))]  # the surest first
    wrong = order[known[order] & ~right[order]]
    size = min(image_size, MAX_TILE_PX)
    # The report reads under a hundred images, for which it must not decode and cache a whole data set.
    reader = Reader(dataset, size, changed(data, cache="never"))

    def gallery(title: str, note: str, rows: Rows) -> Gallery:
        tiles = tuple(_tile(dataset, store, truth, int(row)) for row in rows)
        sprite, tile_px = make_sprite(reader.read(rows))
        return Gallery(title, note, sprite, tile_px, tiles)

    candidates = [
        ("The surest", "spread over the classes", spread_over_classes(order, store.label, NUM_TILES)),
        ("The least sure that were kept", "spread over the classes",
         spread_over_classes(order[::-1], store.label, NUM_TILES)),
        ("Kept, but wrong", f"the surest of {len(wrong):,} known to be wrong", wrong[:NUM_TILES]),
    ]  # fmt: skip
    return PseudoLabels(
        galleries=tuple(gallery(title, note, rows) for title, note, rows in candidates if len(rows)),
        num_known=int(known.sum()),
        accuracy=_mean(right[known]),
        num_known_kept=int(known[kept].sum()),
        kept_accuracy=_mean(right[kept][known[kept]]),
    )


def spread_over_classes(rows: Rows, label: Rows, count: int) -> Rows:
    """The first `count` of rows [N], taking turns over the classes: each class's first, then each class's second.

    `label` has the class of every row of the data set.
    """
    turn = np.zeros(len(rows), np.int64)
    by_class = np.argsort(label[rows], kind="stable")
    _, starts, sizes = np.unique(label[rows][by_class], return_index=True, return_counts=True)
    turn[by_class] = np.arange(len(rows)) - np.repeat(starts, sizes)
    return rows[np.argsort(turn, kind="stable")[:count]]


def make_sprite(images: U8Array) -> tuple[bytes, int]:
    """Images uint8 [n, S, S, 3] side by side in one PNG, and the side of a tile. Small ones grow by a whole factor."""
    factor = max(1, TILE_PX // images.shape[1])
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)  # nearest neighbour, so pixels stay visible
    row = np.concatenate(list(large), axis=1)
    buffer = io.BytesIO()
    Image.fromarray(row).save(buffer, format="png", optimize=True)
    return buffer.getvalue(), large.shape[1]


def _tile(dataset: Dataset, store: Labels, truth: I32Array, row: int) -> Tile:
    classes: Sequence[str] = dataset.classes
    true_class = classes[truth[row]] if truth[row] >= 0 else None
    return Tile(classes[store.label[row]], float(store.confidence[row]), true_class)


def _mean(right: BoolArray) -> float | None:
    return float(right.mean()) if len(right) else None
