"""A learner of every kind on digits, in this process, and the device that the tests of tests/gpu are about.

These tests are tried on a CPU with `SELFTRAIN_GPU_TESTS_ON=cpu python -m pytest -m gpu`, so that no minute on a GPU is
lost to a mistake in a test.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config, NetworkSettings, Training, changed, parse
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup
from support.processes import method_job, train_job

DEVICE = os.environ.get("SELFTRAIN_GPU_TESTS_ON", "cuda")


@dataclass(frozen=True)
class Variant:
    """One way to train: the method, what its sections say, and what is special about its student."""

    method: str
    sections: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)


_BOTH = {"mixup": {"alpha": 0.5, "probability": 0.5}, "cutmix": {"probability": 0.5}}
VARIANTS: dict[str, Variant] = {
    "student": Variant("noisy_student"),
    "student, accumulation": Variant("noisy_student", student={"accumulation": 2, "noise_labeled": False}),
    "student, mixup and cutmix": Variant("noisy_student", student=_BOTH),
    "student, color noise": Variant(
        "noisy_student", student={"weak": {"color_jitter": {"hue": 0.1}, "pca_color": 0.1}}
    ),
    "student, adamw": Variant("noisy_student", student={"optimizer": {"name": "adamw", "lr": 0.01}}),
    "student, lamb": Variant("noisy_student", student={"optimizer": {"name": "lamb", "lr": 0.01}}),
    "student, rmsproptf": Variant("noisy_student", student={"optimizer": {"name": "rmsproptf", "lr": 0.01}}),
    "student, alexnet": Variant("noisy_student", student={"optimizer": {"name": "alexnet", "lr": 0.05}}),
    "uda": Variant("uda"),
    "uda, weak views apart": Variant("uda", {"uda": {"joint_batch": False}}),
    "fixmatch": Variant("fixmatch", {"fixmatch": {"threshold": 0.2}}),
    "fixmatch, adaptive": Variant("fixmatch", {"fixmatch": {"threshold": "adaptive"}}),
    "fixmatch, mixup": Variant("fixmatch", {"fixmatch": {"threshold": 0.2, "mixup": {"alpha": 0.5}}}),
    "meta, exact": Variant("meta", {"meta": {"feedback": "exact"}}),
    "meta, cosine": Variant("meta", {"meta": {"feedback": "cosine"}}),
    "meta, finite-difference": Variant("meta", {"meta": {"feedback": "finite-difference"}}),
    "meta, off": Variant("meta", {"meta": {"feedback": "off"}}),
    "meta, adjuster": Variant("meta", {"meta": {"teacher": "adjuster"}}),
}

MakeJob = Callable[..., TrainJob]
"""(variant, folder, precision="fp32", device=DEVICE, runtime={}, **student) -> the job of its training."""


def make_job(
    digits: Config,
    labels: Path,
    selection: Path,
    variant: str,
    out: Path,
    *,
    precision: str = "fp32",
    device: str = DEVICE,
    runtime: dict[str, Any] | None = None,
    **student: Any,
) -> TrainJob:
    """The job of a variant's training. Pseudo-labels and stored predictions are those of the session's teacher."""
    how = VARIANTS[variant]
    raw = digits.model_dump(mode="json", include={"data", "evaluate", "student"})
    raw["runtime"] = {**digits.runtime.model_dump(), "device": device, "precision": precision, **(runtime or {})}
    training = {**raw["student"], **how.student, **student}
    if how.method == "noisy_student":
        job = train_job(digits, out, selection=selection, training=parse(Training, training, variant))
        return changed(job, runtime=raw["runtime"])
    unread = ("targets", "target_temperature", "mixup", "cutmix", "loss_normalization")
    raw["student"] = {name: value for name, value in training.items() if name not in unread}
    raw["student"] |= {"noise_labeled": False, "label_smoothing": 0.0}
    raw["teacher"] = {name: raw["student"][name] for name in NetworkSettings.model_fields}
    config = parse(Config, {"method": how.method, **raw, **how.sections}, variant)
    stored = {"labels": labels} if config.meta.teacher == "adjuster" else {}
    return method_job(config, out, **stored)


def learner_of(job: TrainJob) -> Learner:
    """The learner of a job, ready to take steps."""
    learner: Learner = load_object(job.learner)(Setup(job, Ranks(), {}))
    for network in learner.networks.values():
        network.train_mode()
    return learner
