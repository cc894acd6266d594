"""Scores of a user's own model, such as a zero-shot one, as labels: a table with one row per image.

Shapes: N rows of a data set, C classes.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.arrays import F32Array
from pipeline.errors import UserError
from pipeline.files import parsing
from pipeline.packing.item import sample_key
from pipeline.shards.dataset import Dataset

log = logging.getLogger("selftrain.label")

IMAGE = "image"
"""The column that names the image."""
_SUM_TOLERANCE = 0.02


def read_scores(path: Path, dataset: Dataset) -> F32Array:
    """The probabilities of every image of a data set, [N, C], from a table of scores.

    An image is named by its key or file, with or without the shard before it, its folders and its extension. Rows that
    sum to 1 are taken as probabilities; if one does not, all are logits, and that is logged.

    Raises:
        UserError: the table cannot be read, lacks a class or an image, or names one twice; a row may mean two images;
            or a score is not finite.
    """
    table = _read(path)
    counts = {name: table.column_names.count(name) for name in (IMAGE, *dataset.classes)}
    if wrong := [name for name, count in counts.items() if count != 1]:
        raise UserError(
            f"{path} has {counts[wrong[0]] or 'no'} column{'s' * (counts[wrong[0]] > 1)} {wrong[0]!r}; it needs "
            f"`{IMAGE}` and one column per class, and has {', '.join(table.column_names[:8])}"
        )
    keys = [dataset.key(row) for row in range(len(dataset))]
    places = _places(path, [str(value or "") for value in table[IMAGE].to_pylist()], keys)
    with parsing(f"{path}: a score is no number", "mend the table"):
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
    with parsing(f"{path} cannot be read as a table", "write it as CSV, TSV or Parquet"):
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        options = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return csv.read_csv(
            path, parse_options=options, convert_options=csv.ConvertOptions(column_types={IMAGE: "string"})
        )


def _places(path: Path, names: list[str], keys: list[str]) -> list[int]:
    """The row of the table, given by its names, that each image, given by its key, has.

    Raises:
        UserError: an image has none or several, or two images have one.
    """
    exact, without_extension = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for row, name in enumerate(names):
        plain = os.path.normpath(name)
        for found, forms in (
            (exact, {plain, sample_key(f"{plain}.x")}),
            (without_extension, {os.path.splitext(plain)[0], sample_key(plain)}),
        ):
            for form in forms:
                found[form].append(row)
    key_of: dict[int, str] = {}
    absent = []
    for key in keys:
        rows = next((found[name] for name in _names(key) for found in (exact, without_extension) if name in found), [])
        if not rows:
            absent.append(key)
        elif len(rows) > 1:
            raise UserError(f"{path} has two rows for image {key!r}, {names[rows[0]]} and {names[rows[1]]}; leave one")
        elif (other := key_of.setdefault(rows[0], key)) != key:
            raise UserError(
                f"{path}: {names[rows[0]]} may be {other!r} or {key!r}; write the path with its folder, or the key"
            )
    if absent:
        raise UserError(f"{path} has no row for {len(absent)} of {len(keys)} unlabeled images, such as {absent[0]!r}")
    row_of = {key: row for row, key in key_of.items()}
    return [row_of[key] for key in keys]


def _names(key: str) -> list[str]:
    """What an image may be called: `shard/folder/name`, without the shard, and without folders."""
    inside = key.partition("/")[2]
    return [key, inside, inside.rpartition("/")[2]]
