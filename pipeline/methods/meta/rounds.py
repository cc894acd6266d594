"""Meta Pseudo Labels trains teacher and student together, in place of rounds."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Config, NetworkSettings, Training, changed
from pipeline.methods.method import Method, OnRound, Stages, fix_of, supervised, warn_of_chance
from pipeline.methods.noisy_student.rounds import train_teacher
from pipeline.methods.round import Round


def meta_pseudo_labels(stages: Stages, on_round: OnRound) -> list[Round]:
    """Train a teacher and its student together (Pham 2021).

    The teacher keeps its last weights; `keep: best` applies to the student only. With `meta.teacher: adjuster`, round 0
    trains a big teacher and its predictions are stored; the training adjusts them (Reduced Meta Pseudo Labels).
    """
    config = stages.config
    if config.meta.teacher == "adjuster":
        teacher = train_teacher(stages)
        on_round(teacher)
        labels = stages.label(1, [teacher.train])
        folder = stages.train("student", 1, config.student, "rounds/1", method=META, labels=labels)
        student = stages.judge("student", 1, folder, labels)
    else:
        network = NetworkSettings(**{name: getattr(config.teacher, name) for name in NetworkSettings.model_fields})
        folder = stages.train("student", 1, config.student, "rounds/1", method=META, teacher=network)
        teacher = stages.judge("teacher", 0, folder / "teacher")
        warn_of_chance(teacher, stages.num_classes, fix_of("student"))
        on_round(teacher)
        student = stages.judge("student", 1, folder)
    on_round(student)
    return [teacher, student]


def _recipe(config: Config, number: int) -> Training:
    """The settings of a round's model: the teacher has its network and the student's stream, unless it came before."""
    if number > 0:
        return config.student
    if config.meta.teacher == "adjuster":
        return config.teacher
    network = {name: getattr(config.teacher, name) for name in NetworkSettings.model_fields}
    return changed(config.student, **network, keep="last")


def _control(config: Config, rounds: Sequence[Round], final: Round) -> Training:
    """The control has the recipe of the final model, or of the student if that is a big teacher without unlabeled
    images."""
    number = 1 if config.meta.teacher == "adjuster" else final.round
    return supervised(_recipe(config, number), by_labels=True)


META = Method(
    name="meta",
    title="Meta Pseudo Labels",
    rounds="pipeline.methods.meta.rounds:meta_pseudo_labels",
    learner="pipeline.methods.meta.learner:MetaLearner",
    recipe=_recipe,
    control=_control,
    finetunes="student",
    needs_every_class=True,
    panels=("pipeline.report.panels:feedback", "pipeline.report.panels:consistency"),
)
