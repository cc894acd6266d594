"""The merge stage: the labels of several teachers become those of one, as a weighted mean of probabilities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32Array, F64Array, I64Array
from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.labels.scores import ScoresQuality, read_calibrated, read_scores
from pipeline.labels.store import LabelRows, LabelStore, label_path, label_record, read_labels, write_labels
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs, digest, digest_once
from pipeline.stages.folder import RECORD
from pipeline.stages.jobs import MergeJob
from pipeline.stages.preamble import Stage

Probabilities = Callable[[npt.NDArray[np.integer]], F32Array]


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
    averaged. With `label.temperature: auto` a table's temperature is fitted before that, if it has all val images.

    Raises:
        UserError: labels or scores are missing, damaged, or of other images.
        Interrupted: a signal stopped it between two shards.
    """
    dataset = open_split(job.data, "unlabeled")
    val = open_split(job.data, "val") if _fits(job) else None
    qualities: list[ScoresQuality] = []
    sources = [_open(one.labels, dataset, val, qualities) for one in job.labels]
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
        mean = sum(weight * source(rows).astype(np.float64) for weight, source in zip(weights, sources, strict=True))
        write_labels(path, _summarize(dataset, rows, np.asarray(mean), job.label.top_k), expected)
    files = [label_path(job.out, shard.name).name for shard in dataset.shards]
    outputs = {"provenance": provenance, "classes": digest(dataset.classes), "num_samples": len(dataset)}
    stage.finish(files, **outputs, **({"scores": qualities} if qualities else {}))


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


def _open(path: Path, dataset: Dataset, val: Dataset | None, qualities: list[ScoresQuality]) -> Probabilities:
    """What gives the probabilities of rows: a label stage, or a table of scores, whose quality on val is noted."""
    if path.is_dir():
        return LabelStore(path, dataset).probabilities
    if val is None:
        return partial(np.take, read_scores(path, dataset).probabilities, axis=0)
    probabilities, quality = read_calibrated(path, dataset, val)
    if quality is not None:
        qualities.append(quality)
    return partial(np.take, probabilities, axis=0)


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
