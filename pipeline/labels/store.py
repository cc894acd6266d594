"""Label files: what a teacher says about every image of one shard, as a memory-mapped Arrow file beside the others.

A file belongs to one provenance (teachers, view, precision, ...) and to one shard's bytes; it is refused for any other.
Shape legend: N rows of the dataset, n rows of a shard, B rows asked for, C classes, k stored classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import F32Array, I32Array, U64Array
from pipeline.errors import UserError
from pipeline.files import Json
from pipeline.shards.table import other_key, read_table, write_table
from pipeline.stages.fingerprint import digest
from pipeline.stages.folder import stage_record

if TYPE_CHECKING:
    import torch

    from pipeline.shards.dataset import Dataset

FORMAT = "selftrain-labels-1"


@dataclass(frozen=True)
class LabelRows:
    """A teacher's predictions for n images: the columns of a label file, in its order."""

    keys: Sequence[str]
    """For people and other tools; we join by row and check by id."""
    ids: U64Array
    """[n] sample ids."""
    label: I32Array
    """[n] the surest class."""
    confidence: F32Array
    """[n] its probability."""
    log_odds: F32Array
    """[n] its logit minus the logsumexp of the others: where confidences are all 1.0 it still ranks."""
    topk_ids: npt.NDArray[np.integer]
    """[n, k] classes, the surest first; k = C when C is small."""
    topk_log_probs: F32Array
    """[n, k] their log-probabilities."""
    residual: F32Array
    """[n] the probability of all other classes together."""

    def __len__(self) -> int:
        return len(self.ids)


def summarize(logits_BC: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """The fields of `LabelRows` that follow from logits, as tensors on the logits' device; no host sync.

    Logits may be shifted by one constant per row, so log-probabilities serve too, such as those of a mean of
    probabilities: `logsumexp(log_softmax(logits_MBC, -1), 0)`. Of equal logits the lower class comes first.
    """
    import torch

    logits_BC = logits_BC.float()
    ordered, order = torch.sort(logits_BC, dim=1, descending=True, stable=True)
    log_probs = ordered - torch.logsumexp(ordered, dim=1, keepdim=True)
    return {
        "label": order[:, 0].int(),
        "confidence": log_probs[:, 0].exp(),
        "log_odds": ordered[:, 0] - torch.logsumexp(ordered[:, 1:], dim=1),
        "topk_ids": order[:, :top_k].int(),
        "topk_log_probs": log_probs[:, :top_k].contiguous(),
        "residual": log_probs[:, top_k:].exp().sum(dim=1),
    }


def label_provenance(
    *,
    teachers: Sequence[str],
    features: Sequence[str] = (),
    temperatures: Sequence[float] = (),
    view: str,
    precision: str,
    flip: bool,
    batch_size: int,
    top_k: int,
    num_classes: int,
    version: int,
) -> dict[str, str]:
    """What the numbers of a label stage depend on beside the shard. `teachers` are fingerprints of weights, `features`
    those of stored features, empty for a teacher that sees images. `version` is that of the kind of stage."""
    more = {"features": ",".join(features)} if any(features) else {}
    more |= {"temperatures": ",".join(map(repr, temperatures))} if temperatures else {}
    return {
        "teachers": ",".join(teachers),
        "view": view,
        "precision": precision,
        "flip": str(flip).lower(),
        "batch_size": str(batch_size),
        "top_k": str(top_k),
        "num_classes": str(num_classes),
        "version": str(version),
        **more,
    }


# ------------------------------------------------------------------------------------------------------------ one file


def label_path(folder: Path, shard: str) -> Path:
    """The label file of the shard of that name, in a label stage's folder."""
    return folder / f"{shard}.arrow"


def write_labels(path: Path, rows: LabelRows, provenance: Mapping[str, str]) -> None:
    """Write one shard's labels atomically. `provenance` is that of the stage, with `shard` (its sha256) added.

    Raises:
        UserError: a prediction is NaN, so the teacher is broken; or the disk is full.
    """
    broken = np.flatnonzero(np.isnan(rows.log_odds) | np.isnan(rows.confidence))
    if broken.size:
        raise UserError(
            f"{path}: the teacher predicts NaN for {broken.size} of {len(rows)} images (first "
            f"`{rows.keys[broken[0]]}`); its weights are broken: train it again with a lower learning rate, or label "
            "in `runtime.precision: fp32`"
        )
    keys = [key.encode("utf-8", "backslashreplace").decode() for key in rows.keys]  # names of files may be no UTF-8
    columns = {**vars(rows), "keys": keys}.values()
    write_table(path, _schema(provenance), {"format": FORMAT, **provenance}, columns)


def _schema(provenance: Mapping[str, str]) -> pa.Schema:
    num_classes = int(provenance["num_classes"])
    width = min(int(provenance["top_k"]), num_classes)
    return pa.schema(
        {
            "key": pa.string(),
            "id": pa.uint64(),
            "label": pa.int32(),
            "confidence": pa.float32(),
            "log_odds": pa.float32(),
            "topk_ids": pa.list_(pa.int16() if num_classes <= 2**15 else pa.int32(), width),
            "topk_log_probs": pa.list_(pa.float32(), width),
            "residual": pa.float32(),
        }
    )


def read_labels(path: Path, expected: Mapping[str, str] | None = None) -> LabelRows:
    """Labels as read-only views of the memory-mapped file: nothing is copied.

    Raises:
        UserError: the file is missing, truncated or damaged, is no label file, or differs from the `expected`
            provenance.
    """
    fix = "delete this file and run `selftrain label` again"
    schema, found, columns = read_table(path, fix)
    wanted = {**(found if expected is None else expected), "format": FORMAT}
    if (key := other_key(found, wanted)) is not None:
        values = f"expected {wanted.get(key, 'none')}, found {found.get(key, 'none')}"
        raise UserError(
            f"{path} holds labels of another {key}: {values}; run `selftrain label` into a new folder, or delete this "
            "file and run it again"
        )
    try:
        num_classes, sound = int(found["num_classes"]), schema.equals(_schema(found))
    except (KeyError, ValueError):
        num_classes, sound = 0, False
    if not sound:
        raise UserError(f"{path} is damaged (its columns are not those of a label file); {fix}")
    rows = LabelRows(*columns)
    for ids in (rows.label, rows.topk_ids):
        if ids.size and not 0 <= ids.min() <= ids.max() < num_classes:
            raise UserError(f"{path} is damaged (a class id is not in 0..{num_classes - 1}); {fix}")
    return rows


# ------------------------------------------------------------------------------------------------------------ all files


def label_record(folder: Path) -> dict[str, Json]:
    """The record of a finished label stage. Raises UserError if the folder holds another, or an unfinished one."""
    record = stage_record(folder)
    if record["kind"] not in ("label", "merge"):
        raise UserError(f"{folder} is a {record['kind']} stage, not a label stage; give one made by `selftrain label`")
    return record


class LabelStore:
    """The labels of a whole dataset, one row per row of it, from a finished label stage's folder.

    Raises:
        UserError: the stage is no label stage, unfinished, or of other classes, or the label file of a shard is
            missing, damaged, or made from other bytes, other images or by another teacher than the stage's.
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        record = label_record(folder)
        self.folder = folder
        self.fingerprint: str = record["fingerprint"]
        self.num_classes = len(dataset.classes)
        if record["outputs"].get("classes", digest(dataset.classes)) != digest(dataset.classes):
            raise UserError(
                f"{folder} holds labels of other classes, or of these in another order, than the data "
                f"({', '.join(dataset.classes[:5])}, ...), so its class ids mean others here; label with these classes"
            )
        expected = {**record["outputs"]["provenance"], "num_classes": str(self.num_classes)}
        self._parts: list[LabelRows] = []
        self._starts = dataset.shard_starts
        for shard in dataset.shards:
            path = label_path(folder, shard.name)
            rows = read_labels(path, {**expected, "shard": shard.sha256})
            _check_ids(path, rows.ids, dataset.ids[shard.start : shard.start + shard.num_rows])
            self._parts.append(rows)
        self.label: I32Array = _join([part.label for part in self._parts])
        self.confidence: F32Array = _join([part.confidence for part in self._parts])
        self.log_odds: F32Array = _join([part.log_odds for part in self._parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def probabilities(self, rows: npt.NDArray[np.integer]) -> F32Array:
        """The teacher's probabilities, [B, C]: the stored ones, and the residual spread evenly over the others."""
        out = np.empty((len(rows), self.num_classes), np.float32)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            where = np.flatnonzero(shard_of_row == shard)
            part, local = self._parts[shard], rows[where] - self._starts[shard]
            topk = part.topk_ids[local].astype(np.int64)
            num_others = self.num_classes - topk.shape[1]
            dense = np.repeat(part.residual[local, None] / np.float32(max(num_others, 1)), self.num_classes, axis=1)
            np.put_along_axis(dense, topk, np.exp(part.topk_log_probs[local]), axis=1)
            out[where] = dense
        return out


def _check_ids(path: Path, found: U64Array, expected: U64Array) -> None:
    if len(found) != len(expected):
        raise UserError(
            f"{path} holds {len(found)} images, its shard {len(expected)} "
            "(`data.bad_images` or the shard changed); run `selftrain label` into a new folder"
        )
    different = np.flatnonzero(found != expected)
    if different.size:
        row = different[0]
        raise UserError(
            f"{path} holds labels of other images: in row {row} expected id {expected[row]:016x}, found "
            f"{found[row]:016x}; run `selftrain label` into a new folder"
        )


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
