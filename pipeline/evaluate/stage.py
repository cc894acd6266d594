"""The evaluate stage: it measures models on a split, once every choice is fixed."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.arrays import F32Array
from pipeline.config import semantic
from pipeline.evaluate.ensemble import mean_log_probs
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.patches import in_fingerprint
from pipeline.evaluate.predictions import write_predictions
from pipeline.evaluate.predictor import predict_by
from pipeline.files import write_json
from pipeline.models.format import model_digest
from pipeline.shards.dataset import open_split
from pipeline.stages import progress
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import append_timing
from pipeline.stages.jobs import EvaluateJob
from pipeline.stages.preamble import Stage

log = logging.getLogger("selftrain.evaluate")

ENSEMBLE, SAMPLED = "ensemble", "mc_dropout"
"""The names, beside those of models, of a mean of models and of a mean of samples."""


def evaluate_inputs(job: EvaluateJob) -> StageInputs:
    """The settings and inputs that the stage's output is a function of."""
    config: dict[str, Any] = {
        "split": job.split,
        "batch_size": job.evaluate.batch_size,
        "flip": job.evaluate.flip,
        "precision": job.runtime.precision,
        "data": semantic(job.data),
        **in_fingerprint(job.evaluate),
    }
    if job.ensemble:
        config["ensemble"] = list(job.ensemble)
    if job.sampled is not None:
        config["mc_dropout"] = [job.sampled, job.evaluate.mc_dropout]
    inputs = {name: model_digest(path) for name, path in sorted(job.models.items())}
    inputs["data"] = open_split(job.data, job.split).fingerprint
    return StageInputs(config, inputs)


def run_evaluate(job: EvaluateJob, stage: Stage) -> None:
    """Write SPLIT.json ({name: metrics}) and one predictions-NAME.npz per model, ensemble, and mean of samples.

    Raises:
        UserError: a model or the split is missing, or they do not fit.
        Interrupted: a signal stopped it between two batches.
    """
    dataset = open_split(job.data, job.split)
    results: dict[str, Any] = {}
    members: list[F32Array] = []

    def keep(name: str, log_probs: F32Array) -> None:
        metrics = compute_metrics(log_probs, dataset.labels)
        log.info("%s on %s: %s", name, job.split, metrics)
        results[name] = metrics.to_json()
        write_predictions(job.out / f"predictions-{name}.npz", log_probs, dataset.labels)

    def answers(path: Path, mc_dropout: int = 0) -> F32Array:
        stop = partial(stage.check_stop, f"in {path}")
        where = (path, dataset, job.data, job.evaluate, job.runtime)
        return predict_by(*where, mc_dropout=mc_dropout, check_stop=stop)

    for done, (name, path) in enumerate(job.models.items()):
        progress.report(job.out, done, len(job.models), "models", name)
        started = time.monotonic()
        log_probs = answers(path)
        keep(name, log_probs)
        if name in job.ensemble:
            members.append(log_probs)
        if name == job.sampled:
            keep(SAMPLED, answers(path, job.evaluate.mc_dropout))
        append_timing(job.out, done, time.monotonic() - started, len(dataset))
    if members:
        keep(ENSEMBLE, mean_log_probs(members))
    write_json(job.out / f"{job.split}.json", results)
    progress.report(job.out, len(job.models), len(job.models), "models")
    stage.finish([f"{job.split}.json", *(f"predictions-{name}.npz" for name in results)])
