"""Noisy Student repeats rounds of label, select and train."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import Config, Start, Training, changed
from pipeline.errors import UserError
from pipeline.methods.method import Method, OnRound, Stages, fix_of, supervised, warn_of_chance
from pipeline.methods.round import Round, is_surely_worse

log = logging.getLogger("selftrain.loop")


def noisy_student(stages: Stages, on_round: OnRound) -> list[Round]:
    """Train the teacher, then students, each of which may become the next teacher (Xie 2020, algorithm 1).

    With `teacher.probe` the teacher is a probe, and so are the students of the first `rounds.on_features` rounds. The
    probes of `committee` label along; in those rounds they learn from the same selection.
    """
    config = stages.config
    teacher = train_teacher(stages)
    on_round(teacher)
    committee = _Committee(stages)
    rounds, teachers = [teacher], [teacher]
    last = config.rounds.on_features
    for numbers in (range(1, last + 1), range(last + 1, config.rounds.total + 1)):
        num_worse = 0
        for number in numbers:
            judges = [folder for t in teachers[: config.for_round(number).label.ensemble] for folder in t.judges]
            labels = stages.label(number, [t.train for t in teachers], [*judges, *committee.members])
            selection = stages.select(number, labels)
            folder, *others = _train_students(stages, number, teachers[0], selection)
            student = stages.judge("student", number, folder, labels, selection, others)
            kept = student.score >= teachers[0].score - config.rounds.tolerance
            student = replace(student, kept=kept)
            rounds.append(student)
            on_round(student)
            if kept:
                teachers.insert(0, student)
                num_worse = 0
                if number <= last:
                    committee.learn(number, selection)
            elif not is_surely_worse(student, teachers[0], config.rounds.judge_by):
                log.warning(
                    "round %d: the student is below its teacher on val, within chance; the teacher stays", number
                )
            else:
                num_worse += 1
                log.warning("round %d: the student is worse on val than its teacher, which stays", number)
                if num_worse >= config.rounds.patience:
                    what = "stopped" if number > last else "rounds on features ended"
                    log.warning("%s after round %d: rounds.patience is %d", what, number, config.rounds.patience)
                    break
            if number < last and not kept and _is_repeated(config, number):
                log.warning("rounds on features ended after round %d: the next one would be the same", number)
                break
    return rounds


def _is_repeated(config: Config, number: int) -> bool:
    """Whether the next round on features labels and selects by the same settings, so with the same teacher the same."""
    this, following = config.for_round(number), config.for_round(number + 1)
    return this.label == following.label and this.select == following.select


class _Committee:
    """The probes that label along with the teacher, each on an encoder of its own."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        config = stages.config
        self.trainings = config.committee if config.rounds.total else ()  # without rounds there is nothing to label
        self.features = [stages.embed(training) for training in self.trainings]
        self.members: list[Path] = []
        self.learn(0)

    def learn(self, number: int, selection: Path | None = None) -> None:
        """Fit them anew, on the labels and on a selection."""
        self.members = [
            self.stages.probe("committee", number, training, f"rounds/{number}", features, selection)
            for training, features in zip(self.trainings, self.features, strict=True)
        ]


def train_teacher(stages: Stages) -> Round:
    """Train round 0 on labeled images alone, or fit it on their features.

    Raises:
        UserError: the teacher is at chance on val, and there are students to come.
    """
    training = stages.config.teacher
    if training.probe is None:
        folder = stages.train("teacher", 0, training, "rounds/0")
    else:
        folder = stages.probe("teacher", 0, training, "rounds/0", stages.embed(training))
    teacher = stages.judge("teacher", 0, folder)
    num_classes = stages.num_classes
    rounds = stages.config.rounds
    if teacher.val_top1 <= 1 / num_classes and rounds.total:
        raise UserError(
            f"the round-0 teacher is at chance on val ({teacher.val_top1:.1%} of {num_classes} classes), so its labels "
            f"would teach nothing; {fix_of('teacher')}"
        )
    warn_of_chance(teacher, num_classes, fix_of("teacher"))
    return teacher


def _train_students(stages: Stages, number: int, teacher: Round, selection: Path) -> list[Path]:
    """Train the students of a round, or fit the one on features; returns their stage folders."""
    config, parent = stages.config, f"rounds/{number}"
    training = _recipe(config, number)
    if training.probe is not None:
        return [stages.probe("student", number, training, parent, stages.embed(training), selection)]
    if config.rounds.start == "init":
        training = changed(training, start=Start(model=str(teacher.train), mode="init"))
    found = training.distillation
    if found is not None and found.source == "model" and found.model is None:
        training = changed(training, distillation=changed(found, model=str(teacher.train)))
    return [
        stages.train("judge" if draw else "student", number, training, parent, selection=selection, draw=draw)
        for draw in range(config.rounds.judges)
    ]


def _recipe(config: Config, number: int) -> Training:
    return config.teacher if number <= config.rounds.on_features else config.for_round(number).student


def _control(config: Config, rounds: Sequence[Round], final: Round) -> Training:
    """The control has the final student's recipe, or the first student's if the final model is the teacher.

    If students start from their teacher's weights, the final one profits from the steps of all students before it. The
    control then starts from the round-0 teacher and takes as many steps. With `early_stop` it may stop as the student
    may, after as many steps without a new best: its evaluations are as far apart. So they are if a plateau lowers the
    learning rate.
    """
    last = max(final.round, 1)
    student = _recipe(config, last)
    if student.probe is not None:  # the control is the probe of labels alone, which there is
        return student
    # With sgd the control's larger rate makes up for its smaller gradient (`loss_normalization`), so it is not held.
    held = student.loss_normalization == "labeled" and student.optimizer.name not in ("sgd", "alexnet")
    training = supervised(student, by_labels=held)
    if config.rounds.start == "scratch":
        return training
    ancestors = [_recipe(config, r.round) for r in rounds if r.role == "student" and r.kept and r.round < last]
    steps = student.steps + sum(training.steps for training in ancestors if training.probe is None)
    if student.early_stop or (student.schedule is not None and student.schedule.name == "plateau"):
        training = changed(training, evaluations=student.evaluations * steps // student.steps)
    return changed(training, steps=steps, start=Start(model=str(rounds[0].train), mode="init"))


NOISY_STUDENT = Method(
    name="noisy_student",
    title="Noisy Student",
    rounds="pipeline.methods.noisy_student.rounds:noisy_student",
    learner="pipeline.methods.noisy_student.learner:PseudoLabelLearner",
    recipe=_recipe,
    control=_control,
)
