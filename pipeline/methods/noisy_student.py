"""Noisy Student: rounds of label, select and train."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from pipeline.config import Config, Start, Training
from pipeline.errors import UserError
from pipeline.run import RoundReport, Run
from pipeline.shards.dataset import open_split

log = logging.getLogger("selftrain.loop")

OnRound = Callable[[RoundReport], None]
"""Called with every round when its model is trained and judged."""


def noisy_student(run: Run, on_round: OnRound) -> list[RoundReport]:
    """Noisy Student (Xie 2020, algorithm 1): the teacher, then students, each of which may become the next teacher."""
    config = run.config
    teacher = train_teacher(run)
    on_round(teacher)
    rounds, teachers, num_worse = [teacher], [teacher], 0
    for number in range(1, config.rounds.num_rounds + 1):
        labels = run.label(number, [t.train for t in teachers])
        selection = run.select(number, labels)
        training = _student(config, number, teachers[0])
        folder = run.train("student", number, training, selection, f"rounds/{number}")
        student = run.report("student", number, folder, labels, selection)
        kept = student.val_top1 >= teachers[0].val_top1 - config.rounds.tolerance
        student = replace(student, kept=kept)
        rounds.append(student)
        on_round(student)
        if kept:
            teachers.insert(0, student)
            num_worse = 0
        else:
            num_worse += 1
            log.warning("round %d: the student is worse on val than its teacher, which stays", number)
            if num_worse >= config.rounds.patience:
                log.warning("stopped after round %d: rounds.patience is %d", number, config.rounds.patience)
                break
    return rounds


def train_teacher(run: Run) -> RoundReport:
    """Round 0, on labeled images alone.

    Raises:
        UserError: the teacher is at chance on val.
    """
    teacher = run.report("teacher", 0, run.train("teacher", 0, run.config.teacher, None, "rounds/0"))
    num_classes = _num_classes(run)
    if teacher.val_top1 <= 1 / num_classes:
        raise UserError(
            f"the round-0 teacher is at chance on val ({teacher.val_top1:.1%} of {num_classes} classes), so its labels "
            f"would teach nothing; {_fix(run)}"
        )
    warn_of_chance(teacher, run)
    return teacher


def warn_of_chance(teacher: RoundReport, run: Run) -> None:
    """Warn of a teacher whose accuracy on val could be luck."""
    num_classes = _num_classes(run)
    if teacher.interval[0] <= 1 / num_classes:
        log.warning(
            "the round-0 teacher cannot be told from chance on val (%.1f%% of %d classes): too few val images, or %s",
            100 * teacher.val_top1,
            num_classes,
            _fix(run),
        )


def _fix(run: Run) -> str:
    section = "student" if run.config.teacher_sees_unlabeled else "teacher"
    return f"raise {section}.steps, check teacher.optimizer.lr, or look at the labels in the report"


def _num_classes(run: Run) -> int:
    return len(open_split(run.config.data, "labeled").classes)


def _student(config: Config, number: int, teacher: RoundReport) -> Training:
    student = config.for_round(number).student
    if config.rounds.start == "scratch":
        return student
    return student.model_copy(update={"start": Start(model=str(teacher.train), mode="init")})
