"""The teachers of a label stage: each predicts from images or, if it is a probe, from stored features.

Shapes: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F32Array, I64Array
from pipeline.errors import UserError
from pipeline.evaluate.calibration import fit_temperature
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.predictor import Seen, batches_of, mean_logits, open_predictor, reader_of
from pipeline.features.encoder import linear_classifier
from pipeline.features.neighbors import neighbors_digest, read_neighbors
from pipeline.features.store import FeatureStore
from pipeline.labels.on_val import LabelsOnVal, as_stored
from pipeline.models.format import NEIGHBORS, model_digest, read_info
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.jobs import LabelJob
from pipeline.stages.machine import device_of
from pipeline.threads import read_ahead

Reading = Callable[[I64Array], Tensor]
"""Rows [B] -> what a teacher sees of them, on the host."""


@dataclass(frozen=True)
class Teacher:
    """What labels, and where it finds what it sees."""

    source: Seen | Path
    """How images are read for it or, of a probe, the embed stage of its encoder. What is equal is read once."""
    reading: Callable[[Dataset], Reading]
    """Opens a data set."""
    logits: Callable[[Tensor], Tensor]
    """What it sees -> logits, float32 [B, C]."""


def teacher_digest(job: LabelJob, path: Path) -> str:
    """The digest of all that a teacher's predictions depend on, beside the features that it may label from.

    Raises:
        UserError: there is none, or it needs features and the job has none.
    """
    return neighbors_digest(path) if path in job.features and _is_neighbors(path) else model_digest(path)


def _is_neighbors(path: Path) -> bool:
    return (path / NEIGHBORS).exists()


def open_teachers(job: LabelJob, dataset: Dataset) -> list[Teacher]:
    """The teachers of a job. Raises UserError when one is missing or knows other classes."""
    return [
        _open_neighbors(job, path, dataset) if _is_neighbors(path) else _open(job, path, dataset)
        for path in job.teachers
    ]


def _open(job: LabelJob, path: Path, dataset: Dataset) -> Teacher:
    _check_classes(path, read_info(path).classes, dataset)
    predictor = open_predictor(path, job.label, job.runtime)
    if (features := job.features.get(path)) is not None:
        head = linear_classifier(predictor.model, predictor.info.architecture)
        return Teacher(features, partial(_of_features, features), partial(_answer, head, predictor.device))

    def reading(seen: Dataset) -> Reading:
        return partial(predictor.read, reader_of(predictor.info, seen, job.data, job.label.scales))

    return Teacher(predictor.seen, reading, predictor.logits)


def _open_neighbors(job: LabelJob, path: Path, dataset: Dataset) -> Teacher:
    classifier, features, device = read_neighbors(path), job.features[path], device_of(job.runtime)
    _check_classes(path, classifier.classes, dataset)
    return Teacher(features, partial(_of_features, features), partial(_answer, classifier.to(device).log_probs, device))


def _of_features(folder: Path, dataset: Dataset) -> Reading:
    store = FeatureStore(folder, dataset)
    return lambda rows: torch.from_numpy(store.of_rows(rows))


@torch.inference_mode()
def _answer(classifier: Callable[[Tensor], Tensor], device: torch.device, features: Tensor) -> Tensor:
    return classifier(features.to(device))


def _check_classes(path: Path, classes: Sequence[str], dataset: Dataset) -> None:
    if tuple(classes) != dataset.classes:
        raise UserError(
            f"teacher {path} knows other classes than the data ({', '.join(classes[:5])}, ... against "
            f"{', '.join(dataset.classes[:5])}, ...); label with a teacher trained on these classes"
        )


class Committee:
    """Teachers whose predictions on one data set are averaged, each at its temperature, and the mean at the last one.

    Args:
        teachers: One teacher, or several.
        dataset: The data set that they predict.
        temperatures: One per teacher, and that of the mean; all are 1 if there are none.
    """

    def __init__(self, teachers: Sequence[Teacher], dataset: Dataset, temperatures: Sequence[float]) -> None:
        self.teachers, self.temperatures = teachers, temperatures or [1.0] * (len(teachers) + 1)
        self._readings: dict[Seen | Path, Reading] = {}
        for teacher in teachers:
            if teacher.source not in self._readings:
                self._readings[teacher.source] = teacher.reading(dataset)

    def read(self, rows: I64Array) -> dict[Seen | Path, Tensor]:
        """What the teachers see of rows [B], on the host: images as they are read, and stored features."""
        return {source: reading(rows) for source, reading in self._readings.items()}

    def logits(self, seen: dict[Seen | Path, Tensor]) -> Tensor:
        """The logits of the averaged prediction, float32 [B, C]."""
        *own, of_mean = self.temperatures
        each = [_cooled(t.logits(seen[t.source]), at) for t, at in zip(self.teachers, own, strict=True)]
        return _cooled(mean_logits(each), of_mean)


class Calibration(NamedTuple):
    """The temperatures of a label stage, and what they were fitted on."""

    temperatures: list[float]
    """One per teacher and that of their mean; empty if `label.temperature` is 1."""
    figures: dict[str, Any]
    """Those of the calibrated labels on val, for stage.json; empty if nothing was fitted."""
    on_val: LabelsOnVal | None
    """The calibrated labels of val; None if nothing was fitted."""


def calibrate(teachers: Sequence[Teacher], job: LabelJob, check_stop: Callable[[], None]) -> Calibration:
    """The temperatures that val asks for, and the calibrated labels of val.

    Each teacher has its own, so that sure ones do not outvote others, and the mean of several has another: a mean of
    calibrated predictions is too unsure (Rahaman 2021).
    """
    asked = job.label.temperature
    if asked == 1:
        return Calibration([], {}, None)
    if asked != "auto":
        return Calibration([float(asked)] * len(teachers) + [1.0], {}, None)
    val = open_split(job.data, "val")

    def predict(teacher: Teacher) -> F32Array:
        committee = Committee([teacher], val, [])
        rows = np.arange(len(val), dtype=np.int64)
        parts = []
        for _, seen in read_ahead(batches_of(rows, job.label.batch_size), committee.read):
            check_stop()
            parts.append(torch.log_softmax(committee.logits(seen), dim=1).cpu().numpy())
        return np.concatenate(parts)

    alone = [predict(teacher) for teacher in teachers]
    temperatures = [fit_temperature(log_probs, val.labels) for log_probs in alone]
    cooled = [torch.from_numpy(log_probs) / t for log_probs, t in zip(alone, temperatures, strict=True)]
    mean = mean_logits(cooled)
    of_mean = fit_temperature(mean.numpy(), val.labels) if len(teachers) > 1 else 1.0
    log_probs = torch.log_softmax(mean / of_mean, dim=1).numpy()
    metrics = compute_metrics(log_probs, val.labels)
    figures = {
        "temperatures": [*temperatures, of_mean],
        "teachers_top1": [compute_metrics(log_probs, val.labels).top1 for log_probs in alone],
        **metrics.to_json(),
    }
    on_val = LabelsOnVal(val.fingerprint, as_stored(np.exp(log_probs), job.label.top_k), val.labels)
    return Calibration([*temperatures, of_mean], figures, on_val)


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature
