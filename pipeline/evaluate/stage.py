"""The evaluate stage: it measures models on a split, once every choice is fixed."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.config import semantic
from pipeline.evaluate.metrics import Metrics, compute_metrics
from pipeline.evaluate.patches import in_fingerprint, patches_of
from pipeline.evaluate.predictions import write_predictions
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.files import write_json
from pipeline.models.format import load_model, model_digest
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages import progress
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import append_timing
from pipeline.stages.jobs import EvaluateJob
from pipeline.stages.machine import device_of
from pipeline.stages.preamble import Stage


def evaluate_inputs(job: EvaluateJob) -> StageInputs:
    """The settings and inputs that the stage's output is a function of."""
    config = {
        "split": job.split,
        "batch_size": job.evaluate.batch_size,
        "flip": job.evaluate.flip,
        "precision": job.runtime.precision,
        "data": semantic(job.data),
        **in_fingerprint(job.evaluate),
    }
    inputs = {name: model_digest(path) for name, path in sorted(job.models.items())}
    inputs["data"] = open_split(job.data, job.split).fingerprint
    return StageInputs(config, inputs)


def run_evaluate(job: EvaluateJob, stage: Stage) -> None:
    """Write SPLIT.json ({name: metrics}) and one predictions-NAME.npz per model.

    Raises:
        UserError: a model or the split is missing, or they do not fit.
        Interrupted: a signal stopped it between two batches.
    """
    dataset = open_split(job.data, job.split)
    results, files = {}, [f"{job.split}.json"]
    for done, (name, path) in enumerate(job.models.items()):
        progress.report(job.out, done, len(job.models), "models", name)
        started = time.monotonic()
        files.append(f"predictions-{name}.npz")
        results[name] = _evaluate_model(path, dataset, job, stage, files[-1]).to_json()
        append_timing(job.out, done, time.monotonic() - started, len(dataset))
    write_json(job.out / files[0], results)
    progress.report(job.out, len(job.models), len(job.models), "models")
    stage.finish(files)


def _evaluate_model(path: Path, dataset: Dataset, job: EvaluateJob, stage: Stage, predictions: str) -> Metrics:
    """The metrics of one model on one dataset; its predictions are written into the stage folder."""
    model, info = load_model(path)
    reader = reader_of(info, dataset, job.data, job.evaluate.scales)
    how = patches_of(job.evaluate)
    predictor = Predictor(model, info, device=device_of(job.runtime), precision=job.runtime.precision, **how)
    log_probs = predict(
        predictor, reader, len(dataset), job.evaluate.batch_size, check_stop=lambda: stage.check_stop(f"in {path}")
    )
    write_predictions(job.out / predictions, log_probs, dataset.labels)
    return compute_metrics(log_probs, dataset.labels)
