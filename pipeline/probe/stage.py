"""The probe stage: it fits a classifier on stored features, and leaves a model as a training does, or what labels."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.arrays import F32Array
from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.evaluate.judged import ANSWER_FILES, MODEL_FILES, write_answers, write_judged
from pipeline.evaluate.metrics import IntArray, Metrics, compute_metrics
from pipeline.features.encoder import build_encoder, linear_classifier, probe_of
from pipeline.features.neighbors import Neighbors, neighbors_digest, vote, write_neighbors
from pipeline.features.store import FeatureStore
from pipeline.files import write_json
from pipeline.models.format import NEIGHBORS, model_digest
from pipeline.probe.logistic import GRID, Linear, fit_path
from pipeline.probe.voting import Voting, try_votes
from pipeline.selection.targets import Targets, open_selection
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages import progress
from pipeline.stages.fingerprint import StageInputs, digest
from pipeline.stages.folder import append_timing, stage_record
from pipeline.stages.jobs import ProbeJob
from pipeline.stages.preamble import Stage

log = logging.getLogger("selftrain.probe")

PROBE_FILE = "probe.json"
PATIENCE = 4
"""Strengths without a better one on val after which weaker penalties, which take longest, are not tried."""


class Rows(NamedTuple):
    """The rows that a probe is fitted on."""

    features: Tensor
    """float32 [N, D]"""
    targets: Tensor
    """Probabilities, float32 [N, C]."""
    weights: Tensor
    """float32 [N]"""


class Tried(NamedTuple):
    """A classifier, and what it is worth on val."""

    c: float
    classifier: Linear
    log_probs: F32Array
    metrics: Metrics


def probe_inputs(job: ProbeJob) -> StageInputs:
    """The settings and inputs that the probe is a function of. A seed is not among them: nothing is drawn."""
    training = job.training
    config = {
        "role": job.role,
        "round": job.round,
        "probe": semantic(probe_of(training)),
        "model": training.model,
        "targets": training.targets,
        "target_temperature": training.target_temperature,
        "data": semantic(job.data),
    }
    inputs = {split: open_split(job.data, split).fingerprint for split in ("labeled", "val")}
    inputs["features"] = digest(stage_record(job.features)["outputs"]["provenance"])
    if job.selection is not None:
        inputs["selection"] = stage_record(job.selection)["fingerprint"]
    return StageInputs(config, inputs)


def run_probe(job: ProbeJob, stage: Stage) -> None:
    """Fit the probe, choose the strength of its penalty on val, and write it as the classifier of its encoder.

    Val is predicted from the stored features, too, so the figures differ from those of a pass over the images by what
    fp16 rounds. probe.json has the figures of every strength, and of the nearest neighbors. With `classifier: knn`
    these are the probe, and it leaves them in the place of a model.

    Raises:
        UserError: the features are of other images, or a class has no row.
        Interrupted: a signal stopped it between two strengths.
    """
    started = time.monotonic()
    val = open_split(job.data, "val")
    rows = _rows(job)
    _check_classes(rows.targets, val.classes)
    held_out = torch.from_numpy(FeatureStore(job.features, val).all())
    fit = _fit_neighbors if probe_of(job.training).classifier == "knn" else _fit_regression
    fitted = fit(job, stage, rows, held_out, val)
    append_timing(job.out, fitted.num_tried, time.monotonic() - started, len(rows.weights))
    stage.finish([*fitted.files, PROBE_FILE], model_sha256=fitted.digest, **fitted.chosen)


class _Fitted(NamedTuple):
    """What a probe left in its folder."""

    files: Sequence[str]
    digest: str
    chosen: dict[str, float]
    """The settings that val chose, by their names."""
    num_tried: int


def _fit_regression(job: ProbeJob, stage: Stage, rows: Rows, held_out: Tensor, val: Dataset) -> _Fitted:
    """Logistic regression, as the classifier of its encoder."""
    probe = probe_of(job.training)
    strengths = GRID if probe.c == "auto" else (probe.c,)
    tried: list[Tried] = []
    for one in try_strengths(rows, held_out, val.labels, strengths, prior_of_val=probe.prior == "val"):
        stage.check_stop("between two strengths of the penalty; nothing is saved")
        tried.append(one)
        progress.report(job.out, len(tried), len(strengths), "strengths")
    best = best_of(tried)
    if len(tried) > 1 and best in (tried[0], tried[-1]):
        log.warning("the best c of the probe is %g, at an end of the grid; set probe.c beyond it", best.c)
    lineage = {"role": job.role, **stage.inputs.inputs, "round": job.round}
    model, info = build_encoder(job.training, val.classes, lineage)
    head = linear_classifier(model, job.training.model)
    with torch.no_grad():
        head.weight.copy_(best.classifier.weight)
        head.bias.copy_(best.classifier.bias)
    write_judged(job.out, model.state_dict(), info, best.log_probs, val.labels)
    neighbors = np.log(vote(rows.features, rows.targets, held_out).clamp_min(1e-12).numpy())
    write_json(
        job.out / PROBE_FILE,
        {
            "c": best.c,
            "num_rows": len(rows.weights),
            "val": [{"c": one.c, "top1": one.metrics.top1, "nll": one.metrics.nll} for one in tried],
            "nearest_neighbors_val_top1": compute_metrics(neighbors, val.labels).top1,
        },
    )
    return _Fitted(MODEL_FILES, model_digest(job.out), {"c": best.c}, len(tried))


def _fit_neighbors(job: ProbeJob, stage: Stage, rows: Rows, held_out: Tensor, val: Dataset) -> _Fitted:
    """The votes of nearest neighbors."""
    shift = _shift(rows, val.labels) if probe_of(job.training).prior == "val" else torch.zeros(len(val.classes))
    base = Neighbors(rows.features.half(), rows.targets, rows.weights, shift.float(), 1, 1.0, val.classes)
    tried: list[Voting] = []
    for one in try_votes(base, held_out, val.labels):
        stage.check_stop("between two numbers of neighbors; nothing is saved")
        tried.append(one)
    best = best_of(tried)
    write_answers(job.out, best.log_probs, val.labels)
    write_neighbors(job.out, best.classifier)
    chosen = {"neighbors": best.classifier.neighbors, "temperature": best.classifier.temperature}
    figures = [
        {
            "neighbors": one.classifier.neighbors,
            "temperature": one.classifier.temperature,
            "top1": one.metrics.top1,
            "nll": one.metrics.nll,
        }
        for one in tried
    ]
    write_json(job.out / PROBE_FILE, {**chosen, "num_rows": len(rows.weights), "val": figures})
    return _Fitted((NEIGHBORS, *ANSWER_FILES), neighbors_digest(job.out), chosen, len(tried))


def try_strengths(
    rows: Rows, held_out: Tensor, labels: IntArray, strengths: Sequence[float], *, prior_of_val: bool = False
) -> Iterator[Tried]:
    """Fit one classifier per strength, from strong penalties to weak ones, until none has been better for PATIENCE.

    Args:
        rows: What they are fitted on.
        held_out: The features of val [M, D].
        labels: The classes of val [M].
        strengths: The inverse strengths c, from small to large.
        prior_of_val: Whether predictions assume that classes are as frequent as in val.
    """
    tried: list[Tried] = []
    shift = _shift(rows, labels) if prior_of_val else None
    for c, fitted in zip(strengths, fit_path(*rows, strengths), strict=False):
        classifier = fitted if shift is None else replace(fitted, bias=fitted.bias + shift)
        log_probs = classifier.log_probs(held_out).float().numpy()
        tried.append(Tried(c, classifier, log_probs, compute_metrics(log_probs, labels)))
        yield tried[-1]
        if tried.index(best_of(tried)) < len(tried) - PATIENCE:
            return


T = TypeVar("T", Tried, Voting)


def best_of(tried: Sequence[T]) -> T:
    """The one with the best likelihood: of a few hundred images it tells more than the accuracy, which jumps."""
    return min(tried, key=lambda one: one.metrics.nll)


def _shift(rows: Rows, labels: IntArray) -> Tensor:
    """What the logits of each class gain if classes are as frequent as among val images, float64 [C] (Saerens 2002).

    One image more per class keeps a class that val lacks from minus infinity.
    """
    of_rows = (rows.targets.double() * rows.weights.double()[:, None]).sum(0)
    of_val = torch.bincount(torch.from_numpy(labels.astype(np.int64)), minlength=len(of_rows)).double() + 1
    return torch.log(of_val / of_val.sum()) - torch.log(of_rows / of_rows.sum())


def _rows(job: ProbeJob) -> Rows:
    """The labeled images with their labels and, with a selection, the pseudo-labeled ones with theirs."""
    labeled = open_split(job.data, "labeled")
    features = [FeatureStore(job.features, labeled).all()]
    targets = [F.one_hot(torch.from_numpy(labeled.labels.astype(np.int64)), len(labeled.classes)).float()]
    weights = [np.ones(len(labeled), np.float32)]
    if job.selection is not None:
        unlabeled = open_split(job.data, "unlabeled")
        selection, store = open_selection(job.selection, unlabeled)
        features.append(FeatureStore(job.features, unlabeled).of_rows(selection.rows))
        asked = Targets(store, job.training.targets, temperature=job.training.target_temperature)
        targets.append(torch.from_numpy(asked.of_rows(selection.rows)))
        weights.append(selection.copies.astype(np.float32))
    return Rows(
        torch.from_numpy(np.concatenate(features)), torch.cat(targets), torch.from_numpy(np.concatenate(weights))
    )


def _check_classes(targets: Tensor, classes: Iterable[str]) -> None:
    empty = [name for name, number in zip(classes, targets.sum(0).tolist(), strict=True) if not number]
    if empty:
        raise UserError(
            f"no labeled image shows {empty[0]!r}, so a probe cannot learn it; label some, or pack without this class"
        )
