"""Encoders that tests train themselves: the digits teacher, whose last layer a probe replaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config, Probe, Start, Training, changed
from pipeline.models.format import read_info
from pipeline.stages.jobs import EmbedJob, ProbeJob


def probing(model: Path, **probe: Any) -> Training:
    """A training in whose place a probe on this model is fitted."""
    info = read_info(model)
    return Training(
        model=info.architecture,
        model_args=info.model_args,
        start=Start(model=str(model)),
        image_size=info.input_size[-1],
        mean=info.mean,
        std=info.std,
        probe=Probe(**probe),
    )


def embed_job(config: Config, out: Path, training: Training, **update: Any) -> EmbedJob:
    """The job of an encoder's pass over labeled, unlabeled and val images."""
    splits = ("labeled", "unlabeled", "val")
    return changed(EmbedJob.of_run(config, out=out, training=training, splits=splits), **update)


def probe_job(config: Config, out: Path, training: Training, features: Path, **update: Any) -> ProbeJob:
    """The job of a probe on labels alone."""
    job = ProbeJob.of_run(config, out=out, role="teacher", round=0, training=training, features=features)
    return changed(job, **update)
