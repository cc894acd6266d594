"""FixMatch trains one network, in place of rounds."""

from __future__ import annotations

from pipeline.methods.method import Method, OnRound, Stages, one_training, supervised
from pipeline.methods.round import Round


def fixmatch(stages: Stages, on_round: OnRound) -> list[Round]:
    """FixMatch (Sohn 2020, algorithm 1): a student labels the weak views of images and learns the strong views."""
    return one_training(FIXMATCH, stages, on_round)


FIXMATCH = Method(
    name="fixmatch",
    title="FixMatch",
    rounds="pipeline.methods.fixmatch.rounds:fixmatch",
    learner="pipeline.methods.fixmatch.learner:FixMatchLearner",
    recipe=lambda config, number: config.student,
    control=lambda config, rounds, final: supervised(config.student, by_labels=True),
    needs_every_class=True,
    panels=("pipeline.report.panels:consistency",),
)
