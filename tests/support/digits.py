"""Packed digits, and a run on them that is small enough to kill often."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config, parse
from pipeline.demos.digits import pack_digits

TRAINING = {
    "model": "wide_resnet10_1",
    "model_args": {"bn_momentum": 0.1},
    "image_size": 8,
    "mean": [0.305, 0.305, 0.305],
    "std": [0.376, 0.376, 0.376],
    "steps": 40,
    "batch_size": 32,
    "warmup_steps": 5,
    "ema_decay": 0.9,
    "optimizer": {"lr": 0.4},
    "weak": {"padding": 1, "flip": False},
    "strong": {"num_ops": 1, "magnitude": 4, "cutout": 2},
    "evaluations": 4,
}


def digits_config(folder: Path) -> Config:
    """Packs the digits; every kind of noise is on, and unlabeled images are in 5 shards."""
    pack_digits(folder, shard_size=200)
    student = {
        **TRAINING,
        "unlabeled_ratio": 2,
        "dropout": 0.1,
        "stochastic_depth": 0.1,
        "clip_norm": 5.0,
        "evaluations": 3,
    }
    raw = {
        "data": {"root": str(folder)},
        "teacher": {**TRAINING, "strong": {"num_ops": 0}},
        "label": {"batch_size": 64},
        "select": {"balance": "uniform", "max_copies": 3, "allow_empty_classes": True},
        "student": student,
        "rounds": {"num_rounds": 1},
        "runtime": {"device": "cpu", "precision": "fp32", "threads": 1, "log_every": 5, "checkpoint_every": 10},
    }
    return parse(Config, raw, "tests")
