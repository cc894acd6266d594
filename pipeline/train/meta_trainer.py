"""The training of a teacher and its student together (Meta Pseudo Labels), or of a UDA teacher alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.config import Meta
from pipeline.randomness import key_of, reseed_torch, uniforms
from pipeline.train.batches import Batch
from pipeline.train.checkpoint import State
from pipeline.train.loop import Loop
from pipeline.train.meta import BELOW_1, Baseline, MetaBatch, meta_step, uda_weight_at
from pipeline.train.network import Network
from pipeline.train.schedule import lr_at

_TEACHER = ("labeled_loss", "uda_loss", "mask_rate", "labeled_top1")
_STUDENT = ("student_loss", "student_agreement")
_FEEDBACK = ("feedback", "baseline", "feedback_gradient", "uda_gradient")


@dataclass
class MetaTrainer(Loop):
    """Both networks, and the baseline of the feedback."""

    meta: Meta
    teacher: Network
    student: Network | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.baseline = Baseline(self.meta.baseline_decay)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a step of this kind measures."""
        of_teacher = _TEACHER if self.meta.teacher == "network" else ()
        of_student = _STUDENT if self.student is not None else ()
        feedback = _FEEDBACK if self.student is not None and self.meta.feedback != "off" else ()
        cosine = ("cosine",) if feedback and self.meta.feedback != "finite-difference" else ()
        return ("loss", *of_teacher, *of_student, *feedback, *cosine, "grad_norm")

    @property
    def networks(self) -> dict[str, Network]:
        """The student, and its teacher."""
        return {"student": self.student, "teacher": self.teacher} if self.student else {"teacher": self.teacher}

    def take_step(self, step: int, batches: Iterable[Batch]) -> int:
        """One step of both."""
        (batch,) = batches
        reseed_torch(key_of(self.seed, "forward", self.round, step, 0, self.accelerator.process_index))
        measured = meta_step(
            self.teacher,
            self.student,
            self._see(batch),
            self.meta,
            self.baseline,
            uda_weight=uda_weight_at(step, self.meta),
            teacher_lr=lr_at(step, self.teacher.training),
            student_lr=self.student_lr(step),
        )
        self.meter.add(step, measured)
        return len(batch.images)

    def rates(self, step: int) -> dict[str, float]:
        """The student's learning rate, and its teacher's."""
        of_teacher = lr_at(step, self.teacher.training)
        return {"lr": self.student_lr(step), "teacher_lr": of_teacher} if self.student else {"lr": of_teacher}

    def student_lr(self, step: int) -> float:
        """0 while the student waits; its schedule takes the steps that are left."""
        wait = self.meta.student_wait
        if self.student is None or step < wait:
            return 0.0
        training = self.student.training
        return lr_at(step - wait, training.model_copy(update={"steps": training.steps - wait}))

    def load(self, state: State) -> None:
        """Take over a checkpoint's state, with the baseline."""
        super().load(state)
        value = state["baseline"]
        self.baseline.value = value.to(self.accelerator.device) if value is not None else None

    def state(self) -> State:
        """What a checkpoint holds, with the baseline."""
        return {**super().state(), "baseline": self.baseline.value}

    def _see(self, batch: Batch) -> MetaBatch:
        device, num_labeled = self.accelerator.device, batch.num_labeled
        images = batch.images.to(device, non_blocking=True)
        labeled, unlabeled = images[:num_labeled], images[num_labeled:]
        of_labeled, of_unlabeled = batch.positions[:num_labeled], batch.positions[num_labeled:]
        draws = uniforms(key_of(self.seed, "sample", self.round), of_unlabeled)[:, 0]
        noisy = self.views.strong if self.training.noise_labeled else self.views.weak
        return MetaBatch(
            labeled=noisy(labeled, of_labeled),
            labels=batch.labels.to(device, non_blocking=True),
            weak=self.views.weak(unlabeled, of_unlabeled),
            strong=self.views.strong(unlabeled, of_unlabeled),
            draws=torch.from_numpy(draws).float().clamp_(max=BELOW_1).to(device, non_blocking=True),
            stored=batch.targets.to(device, non_blocking=True),
        )
