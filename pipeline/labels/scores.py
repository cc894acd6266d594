"""Scores of a user's own model, such as a zero-shot one, as labels: a table with one row per image.

Shapes: N rows of a data set, C classes.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.arrays import F32Array
from pipeline.errors import UserError
from pipeline.files import parsing
from pipeline.shards.dataset import Dataset

log = logging.getLogger("selftrain.label")

IMAGE = "image"
"""The column that names the image."""
_SUM_TOLERANCE = 0.02


def read_scores(path: Path, dataset: Dataset) -> F32Array:
    """The probabilities of every image of a data set, [N, C], from a table of scores.

    An image is named by its key, with or without the shard before it, its folders and its extension. Rows that sum to 1
    are taken as probabilities; if one does not, all are logits, and that is logged.

    Raises:
        UserError: the table cannot be read, lacks a class or an image, or names one twice; or a score is not finite.
    """
    table = _read(path)
    if missing := [name for name in (IMAGE, *dataset.classes) if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {missing[0]!r}; it needs `{IMAGE}` and one column per class, and has "
            f"{', '.join(table.column_names[:8])}"
        )
    row_of = _rows_by_name(path, [str(value) for value in table[IMAGE].to_pylist()])
    keys = [dataset.key(row) for row in range(len(dataset))]
    places = [next((row_of[name] for name in _names(key) if name in row_of), -1) for key in keys]
    if absent := [key for key, place in zip(keys, places, strict=True) if place < 0]:
        raise UserError(f"{path} has no row for {len(absent)} of {len(keys)} unlabeled images, such as {absent[0]!r}")
    columns: list[Any] = [table[name].to_numpy().astype(np.float64) for name in dataset.classes]
    scores = np.stack(columns, axis=1)[places]
    if not np.isfinite(scores).all():
        key = keys[int(np.argmin(np.isfinite(scores).all(axis=1)))]
        raise UserError(f"{path}: a score of {key!r} is not a finite number; mend the table")
    if (scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        return np.asarray(scores / scores.sum(axis=1, keepdims=True), np.float32)
    log.warning("%s: its rows do not sum to 1, so its scores are taken as logits", path)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} is neither a label stage nor a table of scores: there is no such file")
    with parsing(f"{path} cannot be read as a table", "write it as CSV, TSV or Parquet"):
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        options = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return csv.read_csv(
            path, parse_options=options, convert_options=csv.ConvertOptions(column_types={IMAGE: "string"})
        )


def _rows_by_name(path: Path, names: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row, name in enumerate(names):
        for short in {name, str(PurePosixPath(name).with_suffix(""))}:
            if found.setdefault(short, row) != row:
                raise UserError(f"{path} has two rows for image {short!r}; leave one")
    return found


def _names(key: str) -> list[str]:
    """What an image may be called: `shard/folder/name`, without the shard, and without folders."""
    inside = key.partition("/")[2]
    return [key, inside, PurePosixPath(inside).name]
