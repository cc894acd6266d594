"""Meta Pseudo Labels and UDA: one stage in place of rounds."""

from __future__ import annotations

from pipeline.config import SHARED, Config, Training
from pipeline.methods.noisy_student import OnRound, train_teacher, warn_of_chance
from pipeline.run import RoundReport, Run


def meta_pseudo_labels(run: Run, on_round: OnRound) -> list[RoundReport]:
    """A teacher and its student, trained together (Pham 2021).

    The teacher's weights are its last; `keep: best` is about the student. With `meta.teacher: adjuster` round 0 trains
    a big teacher and stores its predictions, which the stage adjusts (Reduced Meta Pseudo Labels).
    """
    from pipeline.train.meta_stage import TEACHER

    config, labels = run.config, None
    training = shared_teacher(config)
    if config.meta.teacher == "adjuster":
        teacher = train_teacher(run)
        on_round(teacher)
        labels = run.label(1, [teacher.train])
        training = training.model_copy(update={"warmup_steps": config.student.warmup_steps})  # the adjuster's
        folder = run.train_meta(training, config.student, labels)
    else:
        folder = run.train_meta(training, config.student)
        teacher = run.report("teacher", 0, folder / TEACHER)
        warn_of_chance(teacher, run)
        on_round(teacher)
    student = run.report("student", 1, folder, labels)
    on_round(student)
    return [teacher, student]


def uda(run: Run, on_round: OnRound) -> list[RoundReport]:
    """Unsupervised Data Augmentation (Xie 2019): the teacher of Meta Pseudo Labels without a student."""
    teacher = run.report("teacher", 0, run.train_meta(shared_teacher(run.config), None))
    warn_of_chance(teacher, run)
    on_round(teacher)
    return [teacher]


def shared_teacher(config: Config) -> Training:
    """The teacher's section, with what it shares with the student; beside one its weights are its last."""
    shared = {name: getattr(config.student, name) for name in SHARED}
    return config.teacher.model_copy(update=shared | ({"keep": "last"} if config.method == "meta" else {}))
