"""A model with its figures on val, as every stage that makes a model leaves it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.arrays import F32Array, I32Array
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.predictions import write_predictions
from pipeline.files import write_json
from pipeline.models.format import ModelInfo, save_model

log = logging.getLogger("selftrain.evaluate")

ANSWER_FILES = ("evaluation-val.json", "predictions-val.npz")
"""The files that `write_answers` leaves."""
MODEL_FILES = ("model.safetensors", "model.json", *ANSWER_FILES)
"""The files that `write_judged` leaves."""


def write_judged(
    out: Path, state: Mapping[str, Tensor], info: ModelInfo, log_probs: F32Array, labels: I32Array
) -> None:
    """Write a model into a stage folder, with its answers [N, C] on val, whose labels are [N], and their figures."""
    metrics = write_answers(out, log_probs, labels)
    save_model(out / "model.safetensors", state, info.with_metrics({"val": metrics}))


def write_answers(out: Path, log_probs: F32Array, labels: I32Array) -> dict[str, Any]:
    """Write answers [N, C] on val, whose labels are [N], and their figures; returns the figures."""
    found = compute_metrics(log_probs, labels)
    log.info("val: %s", found)
    metrics = found.to_json()
    write_json(out / "evaluation-val.json", metrics)
    write_predictions(out / "predictions-val.npz", log_probs, labels)
    return metrics
