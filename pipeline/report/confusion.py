"""The classes of the final model: a table of figures per class, and the confusion matrix as a picture beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pipeline.arrays import I64Array
from pipeline.evaluate.per_class import PerClass, confusion_matrix, per_class, taken_for
from pipeline.evaluate.predictions import Predictions
from pipeline.report.canvas import ACCENT, canvas
from pipeline.report.lineage import title_of
from pipeline.report.plots import MAX_NAMED_CLASSES, shortened
from pipeline.report.record import RunRecord
from pipeline.runs.result import FINAL

MAX_ROWS = 12
"""The table beside the picture has this many of the least recognized classes; a longer one below it has all."""
MAX_IN_CELLS = 12
MAX_DRAWN = 120
"""Of more classes a matrix cannot be read."""
NUM_TAKEN_FOR = 2
SIDE_IN = 4.6
ERRORS = "#D55E00"


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class that has images; precision is None if no image is taken for it."""

    name: str
    count: int
    precision: float | None
    recall: float
    f1: float
    taken_for: Mapping[str, int]


@dataclass(frozen=True)
class ClassSection:
    """The classes of one model on one split."""

    model: str
    split: str
    rows: tuple[ClassRow, ...]
    """The least recognized class first."""
    num_missing: int
    """The number of classes without images, which are in no mean."""
    figures: PerClass
    matrix: bytes | None
    """The confusion matrix as a PNG; None of too many classes to see."""

    @property
    def first_rows(self) -> tuple[ClassRow, ...]:
        """The rows beside the picture."""
        return self.rows[:MAX_ROWS]


def class_section(run: RunRecord) -> ClassSection | None:
    """The classes of the final model on test, or of the newest one on val while there is none; None before any."""
    found = _newest(run)
    if found is None:
        return None
    model, split, answers, classes = found
    figures = per_class(answers.label, answers.pred, len(classes))
    rows = [_row(int(c), figures, answers, classes) for c in figures.least_recognized]
    matrix = confusion_matrix(answers.label, answers.pred, len(classes)) if len(classes) <= MAX_DRAWN else None
    drawn = draw_confusion(matrix, classes) if matrix is not None else None
    return ClassSection(model, split, tuple(rows), len(classes) - len(rows), figures, drawn)


def _newest(run: RunRecord) -> tuple[str, str, Predictions, Sequence[str]] | None:
    trainings = {train.round: train for train in run.trainings if train.round is not None and train.predictions}
    if not trainings:
        return None
    final = run.result["final"]["round"] if run.result else None
    train = trainings[final] if final in trainings else list(trainings.values())[-1]
    if FINAL in run.test_predictions:
        return title_of(train), "test", run.test_predictions[FINAL], train.classes
    assert train.predictions is not None
    return title_of(train), "val", train.predictions, train.classes


def _row(c: int, figures: PerClass, answers: Predictions, classes: Sequence[str]) -> ClassRow:
    others = islice(taken_for(answers.label, answers.pred, c).items(), NUM_TAKEN_FOR)
    return ClassRow(
        name=classes[c],
        count=int(figures.count[c]),
        precision=float(figures.precision[c]) if figures.predicted[c] else None,
        recall=float(figures.recall[c]),
        f1=float(figures.f1[c]),
        taken_for={classes[other]: count for other, count in others},
    )


def draw_confusion(matrix: I64Array, classes: Sequence[str]) -> bytes:
    """The confusion matrix [C, C] as shares of each true class: right answers are blue, wrong ones orange."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(classes), dtype=bool)
    with canvas(width=SIDE_IN, height=SIDE_IN) as drawing:
        (ax,) = drawing.axes
        for color, shown in ((ACCENT, right), (ERRORS, ~right)):
            shades = LinearSegmentedColormap.from_list("shades", [f"{color}00", color])
            # The square root, because an error of one image in fifty should be seen.
            ax.imshow(np.where(shown & (matrix > 0), shares, np.nan), cmap=shades, norm=PowerNorm(0.5, 0, 1))
        if len(classes) <= MAX_IN_CELLS:
            for i, j in np.argwhere(matrix > 0):
                dark = shares[i, j] > 0.3
                ax.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", fontsize=7.5,
                        color="white" if dark else "black")  # fmt: skip
        if len(classes) <= MAX_NAMED_CLASSES:
            names = [shortened(name) for name in classes]
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
            ax.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        ax.set(xlabel="answer", ylabel="truth")
        ax.set_title("Confusion matrix")
        ax.grid(visible=False)
    return drawing.png
