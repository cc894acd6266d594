"""The summary of a selection: its figures per class, and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.arrays import F32Array, F64Array, I32Array, I64Array
from pipeline.labels.scores import ScoresQuality

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1
NUM_BINS = 20
_TABLE_ROWS = 40


class ClassSummary(TypedDict):
    """The figures of one class. Shares are fractions of all rows; counts are images."""

    name: str
    predicted: int
    predicted_prior: float
    labeled_prior: float
    kept: int
    copied: int
    """The number of rows after duplication."""
    threshold: float | None
    """The lowest confidence that was kept; None if nothing was."""
    mean_confidence: float | None
    """The mean confidence of the kept images; None if there are none."""
    cut: NotRequired[float]
    """With `threshold: adaptive`, the threshold of the class."""
    weight: NotRequired[float]
    """With `align`, the factor that its probabilities were multiplied by, before they were renormalized."""


class Histogram(TypedDict):
    """The counts of confidences in bins of equal width over [0, 1]."""

    edges: list[float]
    all: list[int]
    kept: list[int]


class Notice(TypedDict):
    """Something about a selection that its reader should know."""

    name: str
    text: str


class QualityOnVal(TypedDict):
    """What labels are worth on val."""

    top1: float
    ece: float
    num_samples: int


class LabelQuality(QualityOnVal):
    """What a label stage measured of its labels on val, where it fits temperatures (`label.temperature`)."""

    temperatures: NotRequired[list[float]]
    """One per teacher, and that of their mean; labels that were merged have those that their own stages say."""
    teachers_top1: list[float]
    """The accuracy of each teacher, or of each of the labels that were merged."""


class Summary(TypedDict):
    """The content of `selection.json`."""

    schema: int
    num_rows: int
    num_selected: int
    num_copies: int
    effective_size: float
    """(sum of copies)^2 / sum of copies^2: this many images without copies have means of the same variance (Kish)."""
    total_variation: float
    """The distance of the predicted from the labeled prior: 0 if they are equal, 1 if they are disjoint."""
    classes: list[ClassSummary]
    histogram: Histogram
    num_left: NotRequired[int]
    """With `threshold` or `share`, the images that these leave, before `per_class` and balance."""
    on_val: NotRequired[LabelQuality]
    """With `label.temperature: auto`, what the stored labels are worth on val, before `align`."""
    aligned_on_val: NotRequired[QualityOnVal]
    """With `align`, what the labels of val are worth once they have these weights, too, if their stage stored them."""
    scores_on_val: NotRequired[list[ScoresQuality]]
    """The same of each table of scores in `label.others` that has the val images, before it is averaged."""
    warnings: NotRequired[list[Notice]]


class Tally:
    """The running sums that a summary is made of. C classes, n rows of a chunk, k kept rows of it."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.kept = np.zeros(num_classes, np.int64)
        self.copied = np.zeros(num_classes, np.int64)
        self.confidence = np.zeros(num_classes)
        self.lowest = np.full(num_classes, np.inf)
        self.squares = 0
        self.bins_all = np.zeros(NUM_BINS, np.int64)
        self.bins_kept = np.zeros(NUM_BINS, np.int64)

    def add(
        self,
        confidence: F32Array,
        label: I32Array,
        kept: F32Array,
        copies: npt.NDArray[np.unsignedinteger],
    ) -> None:
        """Count a chunk: its confidences [n], and of its kept rows the labels [k], confidences [k] and copies [k]."""
        self.kept += np.bincount(label, minlength=self.num_classes)
        self.copied += np.bincount(label, copies, self.num_classes).astype(np.int64)
        self.confidence += np.bincount(label, kept, self.num_classes)
        np.minimum.at(self.lowest, label, kept)
        self.squares += int((copies.astype(np.int64) ** 2).sum())
        self.bins_all += _histogram(confidence)
        self.bins_kept += _histogram(kept)

    def summary(self, classes: Sequence[str], predicted: I64Array, labeled_prior: F64Array) -> Summary:
        """The summary of all that was added. `predicted` and `labeled_prior` are [C]."""
        prior = predicted / max(predicted.sum(), 1)
        num_copies = int(self.copied.sum())
        lines = [
            ClassSummary(
                name=name,
                predicted=int(predicted[c]),
                predicted_prior=float(prior[c]),
                labeled_prior=float(labeled_prior[c]),
                kept=int(self.kept[c]),
                copied=int(self.copied[c]),
                threshold=float(self.lowest[c]) if self.kept[c] else None,
                mean_confidence=float(self.confidence[c] / self.kept[c]) if self.kept[c] else None,
            )
            for c, name in enumerate(classes)
        ]
        return Summary(
            schema=SCHEMA,
            num_rows=int(predicted.sum()),
            num_selected=int(self.kept.sum()),
            num_copies=num_copies,
            effective_size=num_copies**2 / max(self.squares, 1),
            total_variation=float(np.abs(prior - labeled_prior).sum() / 2),
            classes=lines,
            histogram={
                "edges": [i / NUM_BINS for i in range(NUM_BINS + 1)],
                "all": self.bins_all.tolist(),
                "kept": self.bins_kept.tolist(),
            },
        )


def _histogram(confidence: F32Array) -> I64Array:
    bins = np.clip(confidence * NUM_BINS, 0, NUM_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=NUM_BINS)


def summary_table(summary: Summary) -> Table:
    """The summary as a rich table, one line per class; of many classes it shows those with the fewest and most kept."""
    from rich.table import Table
    from rich.text import Text

    classes: Sequence[ClassSummary] = summary["classes"]
    shown, note = classes, ""
    if len(classes) > _TABLE_ROWS:
        ordered = sorted(classes, key=lambda c: c["kept"])
        shown = ordered[: _TABLE_ROWS // 2] + ordered[-_TABLE_ROWS // 2 :]
        note = f"; {_TABLE_ROWS} of {len(classes)} classes shown, all are in selection.json"
    lowest = "cut" if any("cut" in c for c in classes) else "lowest"
    caption = (
        f"{summary['num_selected']:,} of {summary['num_rows']:,} images selected, {summary['num_copies']:,} with "
        f"copies, effective size {summary['effective_size']:,.0f}{note}; {lowest} and mean are confidences"
    )
    if (on_val := summary.get("aligned_on_val") or summary.get("on_val")) is not None:
        is_before = any("weight" in c for c in classes) and "aligned_on_val" not in summary
        which = "labels before alignment" if is_before else "such labels"
        caption += f"; on val {on_val['top1']:.1%} of {which} are right, calibration error {on_val['ece']:.1%}"
    for scores in summary.get("scores_on_val", ()):
        caption += (
            f"; of {scores['table']} {scores['top1']:.1%} are right on val, calibration error {scores['ece']:.1%}"
        )
    table = Table(title="Selected pseudo-labels", caption=caption)
    table.add_column("class", no_wrap=True)
    for heading in ("predicted", "share", "labeled", "kept", "copies", lowest, "mean"):  # short, to fit 80 columns
        table.add_column(heading, justify="right", no_wrap=True)
    for c in shown:
        counts = f"{c['predicted']:,}", f"{c['predicted_prior']:.1%}", f"{c['labeled_prior']:.1%}"
        table.add_row(
            Text(c["name"]),
            *counts,
            f"{c['kept']:,}",
            f"{c['copied']:,}",
            _fraction(c.get("cut", c["threshold"])),
            _fraction(c["mean_confidence"]),
        )
    return table


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
