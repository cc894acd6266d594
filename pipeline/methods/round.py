"""A round of a run: its model, its figures on val, and how two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import JudgeBy
from pipeline.errors import UserError
from pipeline.evaluate.judging import compare, figure_of
from pipeline.evaluate.predictions import read_predictions
from pipeline.stages.jobs import Role


@dataclass(frozen=True)
class Round:
    """One trained model of a run, as result.json and the artifacts show it."""

    round: int
    role: Role
    model: str
    val_top1: float
    interval: tuple[float, float]
    """The Wilson 95% interval of val_top1."""
    num_selected: int | None
    """The number of distinct pseudo-labeled images that it was trained on; None without a selection."""
    kept: bool
    """False for a student that is worse on val than its teacher, which then stays the teacher."""
    train: Path
    label: Path | None
    select: Path | None
    judged: float | None = None
    """The figure on val that it is judged by, if that is not val_top1 (`rounds.judge_by`, `rounds.judges`)."""
    judges: tuple[Path, ...] = ()
    """Students that were trained alike, by other seeds."""

    @property
    def score(self) -> float:
        """The figure on val that it is judged by."""
        return self.val_top1 if self.judged is None else self.judged

    def to_json(self, run_dir: Path) -> dict[str, Any]:
        """The entry in `rounds` of result.json, with paths relative to the run folder."""
        entry = {**asdict(self), "interval": list(self.interval)}
        for name in ("train", "label", "select"):
            path: Path | None = entry.pop(name)
            entry[f"{name}_dir"] = str(path.relative_to(run_dir)) if path else None
        entry["judges"] = [str(path.relative_to(run_dir)) for path in self.judges]
        return entry


def best_of(rounds: Sequence[Round]) -> Round:
    """The round that is best on val; the earliest on ties."""
    return max(rounds, key=lambda r: (r.score, -r.round))


def judged(students: Sequence[Path], by: JudgeBy) -> float | None:
    """The mean figure of several students, or another figure of one than val_top1. It follows from the answers, which
    stages of earlier versions have too."""
    if by == "top1" and len(students) == 1:
        return None
    figures = []
    for train in students:
        answers = read_predictions(train / "predictions-val.npz")
        if answers is None:
            raise UserError(
                f"{train} has no predictions-val.npz, which rounds.judge_by {by} needs; delete {train} and type the "
                "same command again"
            )
        figures.append(figure_of(answers.label, answers.pred, by))
    return float(np.mean(figures))


def is_surely_worse(student: Round, teacher: Round, by: JudgeBy) -> bool:
    """Whether the student is worse on val than the teacher by more than chance, by a paired test at 95%.

    Of several students the answers are compared one to one. As they are on the same images, the interval is that of as
    many images as val has.
    """
    folders = (student.train, *student.judges), (teacher.train, *teacher.judges)
    num = max(map(len, folders))
    pairs = [tuple(read_predictions(of[k % len(of)] / "predictions-val.npz") for of in folders) for k in range(num)]
    found = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if len(found) < num or any(len(ours.label) != len(theirs.label) for ours, theirs in found):
        return student.score < teacher.score
    label, pred, other = (
        np.concatenate(arrays)
        for arrays in zip(*((ours.label, ours.pred, theirs.pred) for ours, theirs in found), strict=True)
    )
    difference, _, high = compare(label, pred, other, by)
    return difference + math.sqrt(num) * (high - difference) < 0
