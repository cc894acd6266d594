"""The config of trainings that see labeled and unlabeled images together."""

from __future__ import annotations

import pytest

from pipeline.config import Config, NetworkSettings, changed, parse


@pytest.fixture(scope="session")
def config(digits: Config) -> Config:
    """The digits with a student that waits, every kind of noise, and feedback from step 5 on."""
    raw = digits.model_dump(mode="json")
    stream = {key: raw["student"][key] for key in ("image_size", "mean", "std", "weak", "strong")}
    stream |= {"unlabeled_ratio": 2, "steps": 40, "evaluations": 4, "batch_size": 32}
    network = {key: raw["student"][key] for key in ("model", "model_args")}
    network |= {"warmup_steps": 5, "ema_decay": 0.9, "optimizer": {"lr": 0.4}, "dropout": 0.1}
    return parse(
        Config,
        {
            "method": "meta",
            "data": raw["data"],
            "teacher": {**network, "clip_norm": 5.0},
            "student": {**network, **stream},
            "uda": {"ramp_steps": 10, "weight": 2.0},
            "meta": {"student_wait": 5},
            "runtime": raw["runtime"],
        },
        "tests",
    )


@pytest.fixture(scope="session")
def uda_config(config: Config) -> Config:
    """UDA with the teacher's network, on the stream that it shares with its student."""
    network = {name: getattr(config.teacher, name) for name in NetworkSettings.model_fields}
    return changed(config, method="uda", student=changed(config.student, **network))
