"""UDA: one training in place of rounds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Config, Training
from pipeline.methods.method import Method, OnRound, Round, Stages, fix_of, supervised, warn_of_chance


def uda(stages: Stages, on_round: OnRound) -> list[Round]:
    """Unsupervised Data Augmentation (Xie 2019): a student without a teacher."""
    folder = stages.train("student", 1, stages.config.student, "rounds/1", method=UDA)
    student = stages.judge("student", 1, folder)
    warn_of_chance(student, stages.num_classes, fix_of("student"))
    on_round(student)
    return [student]


def _recipe(config: Config, number: int) -> Training:
    return config.student


def _control(config: Config, rounds: Sequence[Round], final: Round) -> Training:
    return supervised(config.student, by_labels=True)


UDA = Method(
    name="uda",
    title="UDA",
    rounds="pipeline.methods.uda.rounds:uda",
    learner="pipeline.methods.uda.learner:UdaLearner",
    recipe=_recipe,
    control=_control,
    needs_every_class=True,
    panels=("consistency",),
)
