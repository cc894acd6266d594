"""Scores of a user's own model, such as a zero-shot one, as labels: a table with one row per image.

Shapes: N rows of a data set, C classes.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.arrays import F32Array, F64Array
from pipeline.errors import UserError
from pipeline.files import parsing
from pipeline.labels.on_val import LabelsOnVal
from pipeline.packing.item import sample_key
from pipeline.shards.dataset import Dataset

log = logging.getLogger("selftrain.label")

IMAGE = "image"
"""The column that names the image."""
_SUM_TOLERANCE = 0.02
_LEAST = 1e-12  # probability, before it is cooled


class ScoresQuality(TypedDict):
    """What the scores of a table are worth on val, once they are calibrated."""

    table: str
    temperature: float
    top1: float
    ece: float


class Scores(NamedTuple):
    """The probabilities that a table gives."""

    probabilities: F32Array
    """Those of the data set, [N, C]."""
    of_val: F32Array | None
    """Those of val, [M, C]; None if the table lacks one of its images."""
    num_val: int
    """The number of val images that it has."""


def read_scores(path: Path, dataset: Dataset, val: Dataset | None = None) -> Scores:
    """The probabilities of every image of a data set, and of val if the table has it, from a table of scores.

    An image is named by its key or file, with or without the shard before it, its folders and its extension. A name
    that may mean an image of the data set means no other of val. Rows that sum to 1 are taken as probabilities; if one
    of the data set does not, all are logits, and that is logged.

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
    names = _Names([str(value or "") for value in table[IMAGE].to_pylist()])
    places = _places(path, names, keys)
    with parsing(f"{path}: a score is no number", "mend the table"):
        columns: list[Any] = [table[name].to_numpy().astype(np.float64) for name in dataset.classes]
    scores = np.stack(columns, axis=1)
    places_of_val, keys_of_val = _places_of_val(names, val, set(places))
    used, used_keys = scores[places + places_of_val], [*keys, *keys_of_val]
    if not np.isfinite(used).all():
        key = used_keys[int(np.argmin(np.isfinite(used).all(axis=1)))]
        raise UserError(f"{path}: a score of {key!r} is not a finite number; mend the table")
    num = len(keys)
    if (used[:num] >= 0).all() and np.abs(used[:num].sum(axis=1) - 1).max() < _SUM_TOLERANCE:
        probabilities = np.asarray(used / used.sum(axis=1, keepdims=True), np.float32)
    else:
        log.warning("%s: its rows do not sum to 1, so its scores are taken as logits", path)
        probabilities = _softmax(used)
    has_val = val is not None and len(places_of_val) == len(val)
    return Scores(probabilities[:num], probabilities[num:] if has_val else None, len(places_of_val))


class Calibrated(NamedTuple):
    """The scores of a table at the temperature that val asks for."""

    probabilities: F32Array
    """Those of the data set, [N, C]."""
    on_val: LabelsOnVal | None
    """Those of val; None if the table lacks one of its images, and then there is no temperature either."""
    quality: ScoresQuality | None


def read_calibrated(path: Path, dataset: Dataset, val: Dataset) -> Calibrated:
    """The probabilities of every image of a data set, and of val, at the temperature that val asks for.

    A table without a row for every image of val gives them as they are, which is logged.

    Raises:
        UserError: as `read_scores` does.
    """
    from pipeline.evaluate.calibration import fit_temperature  # it needs torch, which a merge does not

    scores = read_scores(path, dataset, val)
    if scores.of_val is None:
        log.warning(
            "%s is not calibrated: it has rows for %d of %d val images; add the others, so that its temperature is "
            "fitted, or calibrate it yourself",
            path,
            scores.num_val,
            len(val),
        )
        return Calibrated(scores.probabilities, None, None)
    of_val = _log(scores.of_val)
    temperature = fit_temperature(of_val, val.labels)
    on_val = LabelsOnVal(val.fingerprint, _softmax(of_val / temperature), val.labels)
    metrics = on_val.metrics()
    quality = ScoresQuality(table=path.name, temperature=temperature, top1=metrics.top1, ece=metrics.ece)
    return Calibrated(_softmax(_log(scores.probabilities) / temperature), on_val, quality)


def _log(probabilities: F32Array) -> F64Array:
    """Their logarithms, finite also where a user's scores are 0."""
    return np.log(np.maximum(probabilities.astype(np.float64), _LEAST))


def _softmax(logits: F64Array) -> F32Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def _read(path: Path) -> pa.Table:
    with parsing(f"{path} cannot be read as a table", "write it as CSV, TSV or Parquet"):
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        options = csv.ParseOptions(delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        return csv.read_csv(
            path, parse_options=options, convert_options=csv.ConvertOptions(column_types={IMAGE: "string"})
        )


class _Names:
    """The names of images in a table, in each form in which an image may be asked for."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._exact, self._without_extension = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
        for row, name in enumerate(names):
            plain = os.path.normpath(name)
            for found, forms in (
                (self._exact, {plain, sample_key(f"{plain}.x")}),
                (self._without_extension, {os.path.splitext(plain)[0], sample_key(plain)}),
            ):
                for form in forms:
                    found[form].append(row)

    def rows(self, key: str) -> list[int]:
        """The rows that name the image of this key: `shard/folder/name`, without the shard, or without folders."""
        inside = key.partition("/")[2]
        names = (key, inside, inside.rpartition("/")[2])
        both = self._exact, self._without_extension
        return next((found[name] for name in names for found in both if name in found), [])


def _places(path: Path, names: _Names, keys: list[str]) -> list[int]:
    """The row of the table that each image, given by its key, has.

    Raises:
        UserError: an image has none or several, or two images have one.
    """
    key_of: dict[int, str] = {}
    absent = []
    for key in keys:
        rows = names.rows(key)
        if not rows:
            absent.append(key)
        elif len(rows) > 1:
            first, second = (names.names[row] for row in rows[:2])
            raise UserError(f"{path} has two rows for image {key!r}, {first} and {second}; leave one")
        elif (other := key_of.setdefault(rows[0], key)) != key:
            name = names.names[rows[0]]
            raise UserError(f"{path}: {name} may be {other!r} or {key!r}; write the path with its folder, or the key")
    if absent:
        raise UserError(f"{path} has no row for {len(absent)} of {len(keys)} unlabeled images, such as {absent[0]!r}")
    row_of = {key: row for row, key in key_of.items()}
    return [row_of[key] for key in keys]


def _places_of_val(names: _Names, val: Dataset | None, taken: set[int]) -> tuple[list[int], list[str]]:
    """The rows that mean one val image each and no image of the data set, and the keys of these val images."""
    key_of: dict[int, str] = {}
    for key in (val.key(row) for row in range(len(val))) if val is not None else ():
        rows = names.rows(key)
        if len(rows) == 1 and rows[0] not in taken:
            key_of.setdefault(rows[0], key)
    return list(key_of), list(key_of.values())
