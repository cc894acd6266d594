"""UDA trains one network, in place of rounds."""

from __future__ import annotations

from pipeline.methods.method import Method, OnRound, Stages, one_training, supervised
from pipeline.methods.round import Round


def uda(stages: Stages, on_round: OnRound) -> list[Round]:
    """Unsupervised Data Augmentation (Xie 2019) trains a student without a teacher."""
    return one_training(UDA, stages, on_round)


UDA = Method(
    name="uda",
    title="UDA",
    rounds="pipeline.methods.uda.rounds:uda",
    learner="pipeline.methods.uda.learner:UdaLearner",
    recipe=lambda config, number: config.student,
    control=lambda config, rounds, final: supervised(config.student, by_labels=True),
    needs_every_class=True,
    panels=("pipeline.report.panels:consistency",),
)
