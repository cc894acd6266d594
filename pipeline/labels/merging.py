"""The merge stage: the labels of several teachers become those of one, as a weighted mean of probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32Array, F64Array, I64Array
from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.files import Json
from pipeline.labels.on_val import ON_VAL, LabelsOnVal, mean_on_val, read_on_val, write_on_val
from pipeline.labels.scores import ScoresQuality, read_calibrated, read_scores
from pipeline.labels.store import LabelRows, LabelStore, label_path, label_record, read_labels, write_labels
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs, digest, digest_once
from pipeline.stages.folder import RECORD
from pipeline.stages.jobs import MergeJob
from pipeline.stages.preamble import Stage


class _Source(NamedTuple):
    """Labels that are averaged."""

    probabilities: Callable[[npt.NDArray[np.integer]], F32Array]
    """Rows [B] -> their probabilities [B, C]."""
    on_val: LabelsOnVal | None = None
    """What they say of val; None if that is unknown."""
    quality: ScoresQuality | None = None
    """That of a table which was calibrated."""


def merge_inputs(job: MergeJob) -> StageInputs:
    """The settings and inputs that the mean is a function of. Label stages must be finished. Val is one of them if the
    temperature of a table is fitted on it."""
    config = {"weights": [one.weight for one in job.labels], "top_k": job.label.top_k, "data": semantic(job.data)}
    inputs = {f"labels{i}": labels_fingerprint(one.labels) for i, one in enumerate(job.labels)}
    if _fits(job):
        config["temperature"] = job.label.temperature
        inputs["val"] = open_split(job.data, "val").fingerprint
    return StageInputs(config, {**inputs, "unlabeled": open_split(job.data, "unlabeled").fingerprint})


def run_merge(job: MergeJob, stage: Stage) -> None:
    """Write the label files of the weighted mean, one per shard.

    Stored probabilities beyond the first `label.top_k` are spread evenly over the other classes before they are
    averaged. With `label.temperature: auto` a table's temperature is fitted before that, if it has all val images. If
    it is known what all of them say of val, so is what their mean says.

    Raises:
        UserError: labels or scores are missing, damaged, or of other images.
        Interrupted: a signal stopped it between two shards.
    """
    dataset = open_split(job.data, "unlabeled")
    val = open_split(job.data, "val") if _fits(job) else None
    sources = [_open(one.labels, dataset, val) for one in job.labels]
    weights = np.array([one.weight for one in job.labels], np.float64)
    weights /= weights.sum()
    inputs = ",".join(stage.inputs.inputs[f"labels{i}"] for i in range(len(sources)))
    provenance = {
        "merged": inputs,
        "weights": ",".join(map(repr, weights.tolist())),
        "top_k": str(job.label.top_k),
        "num_classes": str(len(dataset.classes)),
        **({"val": stage.inputs.inputs["val"]} if val is not None else {}),
    }
    for shard in dataset.shards:
        stage.check_stop(f"before shard {shard.name}; the shards before it are merged")
        path, expected = label_path(job.out, shard.name), {**provenance, "shard": shard.sha256}
        if path.exists():
            read_labels(path, expected)
            continue
        rows = np.arange(shard.start, shard.start + shard.num_rows, dtype=np.int64)
        parts = [source.probabilities(rows).astype(np.float64) for source in sources]
        mean = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        write_labels(path, _summarize(dataset, rows, np.asarray(mean), job.label.top_k), expected)
    files = [label_path(job.out, shard.name).name for shard in dataset.shards]
    outputs: dict[str, Json] = {
        "provenance": provenance,
        "classes": digest(dataset.classes),
        "num_samples": len(dataset),
    }
    if qualities := [source.quality for source in sources if source.quality is not None]:
        outputs["scores"] = qualities
    each = [source.on_val for source in sources]
    if (on_val := mean_on_val(each, weights, job.label.top_k)) is not None:
        write_on_val(job.out, on_val)
        files.append(ON_VAL)
        alone = [one.metrics().top1 for one in each if one is not None]
        outputs["val"] = {"teachers_top1": alone, **on_val.metrics().to_json()}
    stage.finish(files, **outputs)


def _fits(job: MergeJob) -> bool:
    """Whether the temperature of a table is fitted on val."""
    return job.label.temperature == "auto" and any(one.labels.is_file() for one in job.labels)


def labels_fingerprint(path: Path) -> str:
    """The fingerprint of a finished label stage, or the digest of a table of scores. Raises UserError if it is none."""
    if (path / RECORD).exists():
        return str(label_record(path)["fingerprint"])
    if not path.is_file():
        what = "a folder without a finished stage" if path.exists() else "no such file"
        raise UserError(f"{path} is neither a label stage nor a table of scores: it is {what}; name one")
    return digest_once(path)


def _open(path: Path, dataset: Dataset, val: Dataset | None) -> _Source:
    """A label stage, or a table of scores, which is calibrated on val if there is one."""
    if path.is_dir():
        return _Source(LabelStore(path, dataset).probabilities, read_on_val(path))
    if val is None:
        return _Source(partial(np.take, read_scores(path, dataset).probabilities, axis=0))
    probabilities, on_val, quality = read_calibrated(path, dataset, val)
    return _Source(partial(np.take, probabilities, axis=0), on_val, quality)


def _summarize(dataset: Dataset, rows: I64Array, probabilities: F64Array, top_k: int) -> LabelRows:
    """The labels of rows [n], of probabilities [n, C], as `store.summarize` makes them of logits."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    with np.errstate(divide="ignore"):  # a user's scores may be 0 and 1
        log_probs = np.log(ordered)
        log_odds = log_probs[:, 0] - np.log(ordered[:, 1:].sum(axis=1))
    return LabelRows(
        keys=[dataset.key(int(row)) for row in rows],
        ids=dataset.ids[rows],
        label=order[:, 0].astype(np.int32),
        confidence=ordered[:, 0].astype(np.float32),
        log_odds=log_odds.astype(np.float32),
        topk_ids=order[:, :top_k].astype(np.int32),
        topk_log_probs=log_probs[:, :top_k].astype(np.float32),
        residual=ordered[:, top_k:].sum(axis=1).astype(np.float32),
    )
