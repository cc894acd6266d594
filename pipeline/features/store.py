"""Feature files: what an encoder makes of every image of one shard, in fp16, as a memory-mapped Arrow file.

Like a label file, it belongs to one provenance (encoder, input, precision, ...) and to one shard's bytes, and is
refused for any other. Shapes: N rows of a data set, n rows of a shard, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import F32Array, U64Array
from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.shards.table import other_key, read_table, write_table
from pipeline.stages.folder import stage_record

if TYPE_CHECKING:
    from pipeline.shards.dataset import Dataset

FORMAT = "selftrain-features-1"
Half = npt.NDArray[np.float16]


def feature_path(folder: Path, split: Split, shard: str) -> Path:
    """The feature file of the shard of that name, in an embed stage's folder."""
    return folder / f"{split}.{shard}.arrow"


def write_features(path: Path, ids: U64Array, features: F32Array, provenance: Mapping[str, str]) -> None:
    """Write one shard's features [n, D] atomically. `provenance` is that of the stage, with `shard` (its sha256) added.

    Raises:
        UserError: a feature is not finite, also after rounding to fp16; or the disk is full.
    """
    with np.errstate(over="ignore"):
        halves = features.astype(np.float16)
    if broken := int((~np.isfinite(halves)).any(axis=1).sum()):
        raise UserError(
            f"{path}: the encoder gives features that are not finite in fp16 for {broken} of {len(ids)} images; encode "
            "in `runtime.precision: fp32`, or choose another encoder"
        )
    schema = pa.schema({"id": pa.uint64(), "features": pa.list_(pa.float16(), features.shape[1])})
    write_table(path, schema, {"format": FORMAT, **provenance}, [ids, halves])


def read_features(path: Path, expected: Mapping[str, str]) -> tuple[U64Array, Half]:
    """The ids [n] and features [n, D] of a shard, as read-only views of the memory-mapped file.

    Raises:
        UserError: the file is missing or damaged, or differs from the `expected` provenance.
    """
    fix = "delete this file and type the command of the run again"
    schema, found, columns = read_table(path, fix)
    wanted = {**expected, "format": FORMAT}
    if (key := other_key(found, wanted)) is not None:
        values = f"expected {wanted.get(key, 'none')}, found {found.get(key, 'none')}"
        raise UserError(f"{path} holds features of another {key}: {values}; {fix}")
    if schema.names != ["id", "features"]:
        raise UserError(f"{path} is damaged (its columns are {schema.names}); {fix}")
    return columns[0], columns[1]


class FeatureStore:
    """The features of a whole data set, one row per row of it, from a finished embed stage's folder.

    Raises:
        UserError: the stage is no embed stage or unfinished, it has not seen the split, or a file is missing, damaged
            or of other images.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        record = stage_record(folder)
        if record["kind"] != "embed":
            raise UserError(f"{folder} is a {record['kind']} stage, not an embed stage")
        self.provenance: dict[str, str] = record["outputs"]["provenance"]
        self._starts = dataset.shard_starts
        self._parts: list[Half] = []
        for shard in dataset.shards:
            path = feature_path(folder, dataset.name, shard.name)
            ids, features = read_features(path, {**self.provenance, "shard": shard.sha256})
            if not np.array_equal(ids, dataset.ids[shard.start : shard.start + shard.num_rows]):
                raise UserError(f"{path} holds features of other images; delete {folder} and embed again")
            self._parts.append(features)

    @property
    def width(self) -> int:
        """The number of features D."""
        return int(self._parts[0].shape[1])

    def of_rows(self, rows: npt.NDArray[np.integer]) -> F32Array:
        """The features of rows [B], as float32 [B, D]."""
        out = np.empty((len(rows), self.width), np.float32)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            where = np.flatnonzero(shard_of_row == shard)
            out[where] = self._parts[shard][rows[where] - self._starts[shard]]
        return out

    def all(self) -> F32Array:
        """All features, as float32 [N, D]."""
        return np.concatenate(self._parts).astype(np.float32)
