"""The teachers of a label stage: each predicts from images or, if it is a probe, from stored features.

Shapes: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F32Array, I64Array
from pipeline.errors import UserError
from pipeline.evaluate.calibration import fit_temperature
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.patches import Pyramid, patches_of
from pipeline.evaluate.predictor import Predictor, Seen, batches_of, mean_logits, reader_of
from pipeline.features.encoder import linear_classifier
from pipeline.features.store import FeatureStore
from pipeline.models.format import load_model
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.reader import Reader
from pipeline.stages.jobs import LabelJob
from pipeline.stages.machine import device_of
from pipeline.threads import read_ahead


@dataclass(frozen=True)
class Teacher:
    """A model that labels, and where it finds what it sees."""

    predictor: Predictor
    features: Path | None
    """The embed stage of its encoder, if it labels from stored features."""

    @property
    def seen(self) -> Seen:
        """What it sees of images."""
        return self.predictor.seen


def open_teachers(job: LabelJob, dataset: Dataset) -> list[Teacher]:
    """The teachers of a job. Raises UserError when one is missing or knows other classes."""
    result = []
    for path in job.teachers:
        model, info = load_model(path)
        if info.classes != dataset.classes:
            raise UserError(
                f"teacher {path} knows other classes than the data ({', '.join(info.classes[:5])}, ... against "
                f"{', '.join(dataset.classes[:5])}, ...); label with a teacher trained on these classes"
            )
        how = patches_of(job.label)
        predictor = Predictor(model, info, device=device_of(job.runtime), precision=job.runtime.precision, **how)
        result.append(Teacher(predictor, job.features.get(path)))
    return result


class Committee:
    """Teachers whose predictions on one data set are averaged, each at its temperature, and the mean at the last one.

    Args:
        teachers: One teacher, or several.
        dataset: The data set that they predict.
        job: The label job, which says where images are cached.
        temperatures: One per teacher, and that of the mean; all are 1 if there are none.
    """

    def __init__(
        self, teachers: Sequence[Teacher], dataset: Dataset, job: LabelJob, temperatures: Sequence[float]
    ) -> None:
        self.teachers, self.temperatures = teachers, temperatures or [1.0] * (len(teachers) + 1)
        self._readers: dict[Seen, Reader | Pyramid] = {}
        self._stores: dict[Path, FeatureStore] = {}
        for teacher in teachers:
            if teacher.features is not None:
                self._stores[teacher.features] = FeatureStore(teacher.features, dataset)
            elif teacher.seen not in self._readers:
                self._readers[teacher.seen] = reader_of(teacher.predictor.info, dataset, job.data, job.label.scales)

    def read(self, rows: I64Array) -> dict[Seen | Path, Tensor]:
        """What the teachers see of rows [B], on the host: images as they are read, and stored features."""
        seen: dict[Seen | Path, Tensor] = {}
        for key, reader in self._readers.items():
            seen[key] = self.teachers[0].predictor.read(reader, rows)
        for path, store in self._stores.items():
            seen[path] = torch.from_numpy(store.of_rows(rows))
        return seen

    def logits(self, seen: dict[Seen | Path, Tensor]) -> Tensor:
        """The logits of the averaged prediction, float32 [B, C]."""
        *own, of_mean = self.temperatures
        each = [_cooled(self._of(t, seen), at) for t, at in zip(self.teachers, own, strict=True)]
        return _cooled(mean_logits(each), of_mean)

    def _of(self, teacher: Teacher, seen: dict[Seen | Path, Tensor]) -> Tensor:
        if teacher.features is None:
            return teacher.predictor.logits(seen[teacher.seen])
        predictor = teacher.predictor
        head = linear_classifier(predictor.model, predictor.info.architecture)
        with torch.inference_mode():
            logits: Tensor = head(seen[teacher.features].to(predictor.device))
        return logits


def calibrate(
    teachers: Sequence[Teacher], job: LabelJob, check_stop: Callable[[], None]
) -> tuple[list[float], dict[str, Any]]:
    """The temperatures that val asks for, and the figures of the calibrated labels on val.

    Each teacher has its own, so that sure ones do not outvote others, and the mean of several has another: a mean of
    calibrated predictions is too unsure (Rahaman 2021).

    Returns:
        One temperature per teacher and that of the mean, and figures for stage.json; both are empty if
        `label.temperature` is 1.
    """
    asked = job.label.temperature
    if asked == 1:
        return [], {}
    if asked != "auto":
        return [float(asked)] * len(teachers) + [1.0], {}
    val = open_split(job.data, "val")

    def predict(teacher: Teacher) -> F32Array:
        committee = Committee([teacher], val, job, [])
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
    metrics = compute_metrics(torch.log_softmax(mean / of_mean, dim=1).numpy(), val.labels)
    figures = {
        "temperatures": [*temperatures, of_mean],
        "teachers_top1": [compute_metrics(log_probs, val.labels).top1 for log_probs in alone],
        **metrics.to_json(),
    }
    return [*temperatures, of_mean], figures


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature
