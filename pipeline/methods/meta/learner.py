"""The learner that trains a teacher and its student together (Meta Pseudo Labels)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pipeline.config import Meta, NetworkSettings, Uda
from pipeline.labels.store import LabelStore
from pipeline.methods.meta.adjuster import Adjuster
from pipeline.methods.meta.step import BELOW_1, Baseline, MetaBatch, meta_step
from pipeline.methods.uda.learner import METRICS as TEACHER_METRICS
from pipeline.methods.uda.learner import uda_weight_at
from pipeline.models.checkpoints import State
from pipeline.randomness import key_of, reseed_torch, uniforms
from pipeline.selection.targets import Targets
from pipeline.train.batches import Batch
from pipeline.train.joint import see
from pipeline.train.learner import Learner
from pipeline.train.network import Network, prepare
from pipeline.train.schedule import lr_at
from pipeline.train.setup import Setup

TEACHER = "teacher"
"""The teacher's name in checkpoints, and its folder within the stage folder."""


class MetaLearner(Learner):
    """Trains both networks, and keeps the baseline of the feedback."""

    reads_unlabeled = True

    def __init__(self, setup: Setup) -> None:
        meta, uda = setup.job.settings["meta"], setup.job.settings["uda"]
        assert isinstance(meta, Meta)
        assert isinstance(uda, Uda)
        self.meta, self.uda = meta, uda
        self.metrics = _metrics(meta)
        super().__init__(setup)
        self.teacher = _teacher(setup, meta)
        self.student = setup.network(self.training, "student")
        self.networks = {"student": self.student, TEACHER: self.teacher}
        self.baseline = Baseline(meta.baseline_decay)
        self.batches = setup.batches(unlabeled=True, targets=_stored(setup))
        self.views = setup.views()

    @property
    def waits(self) -> int:
        """The steps in which the student waits, too."""
        return max(super().waits, self.meta.student_wait)

    @property
    def rises(self) -> int:
        """The steps of the wait and of the student's warm-up after it."""
        return max(super().rises, self.meta.student_wait + self.training.warmup_steps)

    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Train both networks on the one batch of a step."""
        (batch,) = batches
        self.reseed(step)
        measured = meta_step(
            self.teacher,
            self.student,
            self._see(batch),
            self.meta,
            self.uda,
            self.baseline,
            uda_weight=uda_weight_at(step, self.uda),
            teacher_lr=self.teacher_lr(step),
            student_lr=self.lr(step),
        )
        self.meter.add(step, measured)
        return len(batch.images)

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates of the student and of its teacher."""
        return {"lr": self.lr(step), "teacher_lr": self.teacher_lr(step)}

    def lr(self, step: int) -> float:
        """The student's learning rate: 0 while it waits; its schedule covers the steps after that."""
        wait, training = self.meta.student_wait, self.training
        if step < wait:
            return 0.0
        falls = [fall - wait for fall in self.falls]
        return lr_at(step - wait, training, steps=training.steps - wait, num_images=training.peak_images, falls=falls)

    def teacher_lr(self, step: int) -> float:
        """The teacher's learning rate, for the number of images of the student's stream."""
        training, settings = self.training, self.teacher.settings
        return lr_at(step, settings, steps=training.steps, num_images=training.peak_images, falls=self.falls)

    def extra(self) -> State:
        """The baseline of the feedback; None before the first feedback."""
        return {"baseline": self.baseline.value}

    def load_extra(self, state: State) -> None:
        """Restore the baseline."""
        value = state["baseline"]
        self.baseline.value = value.to(self.accelerator.device) if value is not None else None

    def _see(self, batch: Batch) -> MetaBatch:
        job = self.setup.job
        draws = uniforms(key_of(job.seed, "sample", job.round), batch.positions[batch.num_labeled :])[:, 0]
        below_1 = torch.from_numpy(draws).float().clamp_(max=BELOW_1)
        images, labels, draws_U, stored = self.to_device(batch.images, batch.labels, below_1, batch.targets)
        joint = see(batch, images, labels, self.views, self.training)
        return MetaBatch(**vars(joint), draws=draws_U, stored=stored)


def _metrics(meta: Meta) -> tuple[str, ...]:
    """The names of what a step with these settings measures."""
    of_teacher = TEACHER_METRICS if meta.teacher == "network" else ()
    feedback = ("feedback", "baseline", "feedback_gradient", "uda_gradient") if meta.feedback != "off" else ()
    cosine = ("cosine",) if meta.feedback in ("exact", "cosine") else ()
    return ("loss", *of_teacher, "student_loss", "student_agreement", *feedback, *cosine, "grad_norm")


def _teacher(setup: Setup, meta: Meta) -> Network:
    """The network of the teacher, or the adjuster of a big teacher's stored predictions."""
    if meta.teacher == "network":
        assert setup.job.teacher is not None
        return setup.network(setup.job.teacher, TEACHER, role="teacher")
    reseed_torch(key_of(setup.job.seed, "init", setup.job.round, "adjuster"))
    model = Adjuster(len(setup.labeled.classes), meta.adjuster.hidden).to(setup.accelerator.device)
    student = setup.job.training
    as_student = {name: getattr(student, name) for name in ("warmup_steps", "schedule", "ema_decay")}
    settings = NetworkSettings(optimizer=meta.adjuster.optimizer, **as_student)
    return prepare(model, settings, setup.accelerator, setup.ranks)


def _stored(setup: Setup) -> Targets | None:
    labels = setup.job.labels
    return Targets(LabelStore(labels, setup.unlabeled), "soft") if labels is not None else None
