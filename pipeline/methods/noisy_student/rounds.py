"""Noisy Student repeats rounds of label, select and train."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from pipeline.config import Config, Start, Training, changed
from pipeline.errors import UserError
from pipeline.methods.method import Method, OnRound, Round, Stages, fix_of, is_surely_worse, supervised, warn_of_chance

log = logging.getLogger("selftrain.loop")


def noisy_student(stages: Stages, on_round: OnRound) -> list[Round]:
    """Train the teacher, then students, each of which may become the next teacher (Xie 2020, algorithm 1)."""
    config = stages.config
    teacher = train_teacher(stages)
    on_round(teacher)
    rounds, teachers, num_worse = [teacher], [teacher], 0
    for number in range(1, config.rounds.num_rounds + 1):
        labels = stages.label(number, [t.train for t in teachers])
        selection = stages.select(number, labels)
        training = _student(config, number, teachers[0])
        folder = stages.train("student", number, training, f"rounds/{number}", selection=selection)
        student = stages.judge("student", number, folder, labels, selection)
        kept = student.score >= teachers[0].score - config.rounds.tolerance
        student = replace(student, kept=kept)
        rounds.append(student)
        on_round(student)
        if kept:
            teachers.insert(0, student)
            num_worse = 0
        elif not is_surely_worse(student, teachers[0], config.rounds.judge_by):
            log.warning("round %d: the student is below its teacher on val, within chance; the teacher stays", number)
        else:
            num_worse += 1
            log.warning("round %d: the student is worse on val than its teacher, which stays", number)
            if num_worse >= config.rounds.patience:
                log.warning("stopped after round %d: rounds.patience is %d", number, config.rounds.patience)
                break
    return rounds


def train_teacher(stages: Stages) -> Round:
    """Train round 0 on labeled images alone.

    Raises:
        UserError: the teacher is at chance on val.
    """
    teacher = stages.judge("teacher", 0, stages.train("teacher", 0, stages.config.teacher, "rounds/0"))
    num_classes = stages.num_classes
    if teacher.val_top1 <= 1 / num_classes:
        raise UserError(
            f"the round-0 teacher is at chance on val ({teacher.val_top1:.1%} of {num_classes} classes), so its labels "
            f"would teach nothing; {fix_of('teacher')}"
        )
    warn_of_chance(teacher, num_classes, fix_of("teacher"))
    return teacher


def _student(config: Config, number: int, teacher: Round) -> Training:
    student = config.for_round(number).student
    if config.rounds.start == "scratch":
        return student
    return changed(student, start=Start(model=str(teacher.train), mode="init"))


def _recipe(config: Config, number: int) -> Training:
    return config.teacher if number == 0 else config.for_round(number).student


def _control(config: Config, rounds: Sequence[Round], final: Round) -> Training:
    """The control has the final student's recipe, or the first student's if the final model is the teacher.

    If students start from their teacher's weights, the final one profits from the steps of all students before it. The
    control then starts from the round-0 teacher and takes as many steps.
    """
    last = max(final.round, 1)
    student = _recipe(config, last)
    # With sgd the control's larger rate makes up for its smaller gradient (`loss_normalization`), so it is not held.
    held = student.loss_normalization == "labeled" and student.optimizer.name != "sgd"
    training = supervised(student, by_labels=held)
    if config.rounds.start == "scratch":
        return training
    ancestors = [r.round for r in rounds if r.role == "student" and r.kept and r.round < last]
    steps = student.steps + sum(_recipe(config, number).steps for number in ancestors)
    return changed(training, steps=steps, start=Start(model=str(rounds[0].train), mode="init"))


NOISY_STUDENT = Method(
    name="noisy_student",
    title="Noisy Student",
    rounds="pipeline.methods.noisy_student.rounds:noisy_student",
    learner="pipeline.methods.noisy_student.learner:PseudoLabelLearner",
    recipe=_recipe,
    control=_control,
)
