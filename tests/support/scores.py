"""Tables of scores, as a user's own model would leave them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.shards.dataset import Dataset


def write_scores(path: Path, dataset: Dataset, scores: np.ndarray, names: Sequence[str] | None = None) -> Path:
    """Write one row per image, named by its key if there are no names."""
    keys = names or [dataset.key(row) for row in range(len(dataset))]
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *reversed(dataset.classes)])  # columns are found by name
        table.writerows([key, *row[::-1].tolist()] for key, row in zip(keys, scores, strict=True))
    return path
