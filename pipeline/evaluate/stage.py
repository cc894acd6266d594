"""The evaluate stage: models on a split, once every choice is fixed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from pipeline import progress
from pipeline.config import semantic
from pipeline.evaluate.metrics import Metrics, compute_metrics
from pipeline.evaluate.predict import Predictor, predict, write_predictions
from pipeline.jobs import EvaluateJob
from pipeline.models.folder import load_model, model_digest
from pipeline.runtime import device_of, environment
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.read import Reader
from pipeline.stage import append_timing, open_stage, write_json


def evaluate_inputs(job: EvaluateJob) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's output is a function of."""
    config = {
        "split": job.split,
        "batch_size": job.evaluate.batch_size,
        "flip": job.evaluate.flip,
        "precision": job.runtime.precision,
        "data": semantic(job.data),
    }
    inputs = {name: model_digest(path) for name, path in sorted(job.models.items())}
    inputs["data"] = open_split(job.data, job.split).fingerprint
    return config, inputs


def run_evaluate(job: EvaluateJob) -> None:
    """Write SPLIT.json ({name: metrics}) and predictions-NAME.npz."""
    torch.set_num_threads(max(job.runtime.threads, 1))
    config, inputs = evaluate_inputs(job)
    env = environment(job.runtime)
    stage = open_stage(job.out, "evaluate", config, inputs, env, accept_environment=job.accept_environment)
    if stage.complete:
        return
    dataset = open_split(job.data, job.split)
    results = {}
    for done, (name, path) in enumerate(job.models.items()):
        progress.report(job.out, done, len(job.models), "models", name)
        started = time.monotonic()
        predictions = job.out / f"predictions-{name}.npz"
        results[name] = evaluate_model(path, dataset, job, predictions).to_json()
        append_timing(job.out, done, time.monotonic() - started, len(dataset))
    write_json(job.out / f"{job.split}.json", results)
    progress.report(job.out, len(job.models), len(job.models), "models")
    stage.finish()


def evaluate_model(path: Path, dataset: Dataset, job: EvaluateJob, predictions: Path | None = None) -> Metrics:
    """Metrics of one model on one dataset; optionally keeps every prediction."""
    model, info = load_model(path)
    reader = Reader(dataset, info.input_size[-1], job.data)
    predictor = Predictor(
        model, info, device=device_of(job.runtime), precision=job.runtime.precision, flip=job.evaluate.flip
    )
    log_probs = predict(predictor, reader, len(dataset), job.evaluate.batch_size)
    if predictions is not None:
        write_predictions(predictions, log_probs, dataset.labels)
    return compute_metrics(log_probs, dataset.labels)
