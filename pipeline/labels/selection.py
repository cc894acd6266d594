"""A selection: which rows train the student and how often, its per-class report, and how both are shown and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.labels.arrow import read_arrow, write_arrow
from pipeline.stage import SCHEMA, atomic_path, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

FORMAT = "selftrain-selection-1"
NUM_BINS = 20
_TABLE_ROWS = 40


class ClassReport(TypedDict):
    """One class of a selection. Shares are fractions of all rows; counts are images."""

    name: str
    predicted: int
    predicted_prior: float
    labeled_prior: float
    kept: int
    copied: int
    """Rows after duplication."""
    threshold: float | None
    """The lowest confidence kept; none if nothing is."""
    mean_confidence: float | None
    """Of the kept images."""


class Histogram(TypedDict):
    """Counts of confidences in equal bins of [0, 1]."""

    edges: list[float]
    all: list[int]
    kept: list[int]


class Report(TypedDict):
    """What `selection.json` holds."""

    schema: int
    num_rows: int
    num_selected: int
    num_copies: int
    effective_size: float
    """(sum of copies)^2 / sum of copies^2: so many images without copies give means of the same variance (Kish)."""
    total_variation: float
    """Distance of the predicted from the labeled prior: 0 equal, 1 disjoint."""
    classes: list[ClassReport]
    histogram: Histogram


@dataclass(frozen=True)
class Selection:
    """Selected rows of the unlabeled dataset."""

    rows: npt.NDArray[np.uint32]
    """Ascending."""
    copies: npt.NDArray[np.unsignedinteger]
    """How often each is seen in an epoch, at least 1."""
    report: Report


class Tally:
    """Running sums that make a report."""

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
        confidence: npt.NDArray[np.float32],
        label: npt.NDArray[np.int32],
        kept: npt.NDArray[np.float32],
        copies: npt.NDArray[np.unsignedinteger],
    ) -> None:
        """Count a chunk: all its confidences, and the labels, confidences and copies of its kept rows."""
        self.kept += np.bincount(label, minlength=self.num_classes)
        self.copied += np.bincount(label, copies, self.num_classes).astype(np.int64)
        self.confidence += np.bincount(label, kept, self.num_classes)
        np.minimum.at(self.lowest, label, kept)
        self.squares += int((copies.astype(np.int64) ** 2).sum())
        self.bins_all += _histogram(confidence)
        self.bins_kept += _histogram(kept)

    def report(
        self, classes: Sequence[str], predicted: npt.NDArray[np.int64], labeled_prior: npt.NDArray[np.float64]
    ) -> Report:
        """The report of all that was added. Priors and counts are [C]."""
        prior = predicted / max(predicted.sum(), 1)
        num_copies = int(self.copied.sum())
        lines = [
            ClassReport(
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
        return Report(
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


def _histogram(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    bins = np.clip(confidence * NUM_BINS, 0, NUM_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=NUM_BINS)


def write_selection(folder: Path, selection: Selection) -> None:
    """Write selection.arrow (row, copies), selection.json (the report) and selection.png (its plot)."""
    batch = pa.RecordBatch.from_pydict({"row": pa.array(selection.rows), "copies": pa.array(selection.copies)})
    write_arrow(folder / "selection.arrow", batch.replace_schema_metadata({"format": FORMAT}))
    write_json(folder / "selection.json", selection.report)
    plot_report(selection.report, folder / "selection.png")


def read_selection(folder: Path) -> Selection:
    """Read a selection, memory-mapped. Raises UserError when a file is missing, damaged or foreign."""
    path = folder / "selection.arrow"
    fix = f"delete {folder} and run `selftrain select` again"
    batch = read_arrow(path, fix)
    found = (batch.schema.metadata or {}).get(b"format", b"none").decode()
    if found != FORMAT:
        raise UserError(f"{path} is no selection: expected format {FORMAT}, found {found}; {fix}")
    report = cast(Report, read_json(folder / "selection.json"))
    if report["num_selected"] != batch.num_rows:
        raise UserError(f"{path} has {batch.num_rows} rows, its report {report['num_selected']}; {fix}")
    return Selection(batch["row"].to_numpy(), batch["copies"].to_numpy(), report)


# ------------------------------------------------------------------------------------------------------------ showing


def report_table(report: Report) -> Table:
    """The report as a rich table, a line a class; of very many classes, those with the fewest and the most kept."""
    from rich.table import Table
    from rich.text import Text

    classes: Sequence[ClassReport] = report["classes"]
    shown, note = classes, ""
    if len(classes) > _TABLE_ROWS:
        ordered = sorted(classes, key=lambda c: c["kept"])
        shown = ordered[: _TABLE_ROWS // 2] + ordered[-_TABLE_ROWS // 2 :]
        note = f"; {_TABLE_ROWS} of {len(classes)} classes shown, all are in selection.json"
    caption = (
        f"{report['num_selected']:,} of {report['num_rows']:,} images selected, {report['num_copies']:,} with copies, "
        f"effective size {report['effective_size']:,.0f}{note}; lowest and mean are confidences"
    )
    table = Table(title="Selected pseudo-labels", caption=caption)
    table.add_column("class", no_wrap=True)
    for heading in ("predicted", "share", "labeled", "kept", "copies", "lowest", "mean"):  # short: for 80 columns
        table.add_column(heading, justify="right", no_wrap=True)
    for c in shown:
        counts = f"{c['predicted']:,}", f"{c['predicted_prior']:.1%}", f"{c['labeled_prior']:.1%}"
        table.add_row(
            Text(c["name"]),
            *counts,
            f"{c['kept']:,}",
            f"{c['copied']:,}",
            _fraction(c["threshold"]),
            _fraction(c["mean_confidence"]),
        )
    return table


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plot_report(report: Report, path: Path) -> None:
    """Plot predicted against labeled priors, and kept against copied counts, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes = report["classes"]
    figure = Figure(figsize=(min(24.0, max(8.0, 0.5 * len(classes))), 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    priors, counts = figure.subplots(2, 1, sharex=True)
    _bars(
        priors, {"predicted": [c["predicted_prior"] for c in classes], "labeled": [c["labeled_prior"] for c in classes]}
    )
    priors.set_ylabel("share of images")
    _bars(counts, {"kept": [c["kept"] for c in classes], "with copies": [c["copied"] for c in classes]})
    counts.set_ylabel("pseudo-labeled images")
    if len(classes) <= _TABLE_ROWS:
        counts.set_xticks(range(len(classes)), [c["name"] for c in classes], rotation=45, ha="right", parse_math=False)
    else:
        counts.set_xlabel("class id")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _bars(axes: Axes, series: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        if len(values) <= _TABLE_ROWS:
            axes.bar(np.arange(len(values)) + (number - 0.5) * width, values, width, label=name)
        else:  # one artist instead of a thousand, which take seconds
            axes.stairs(values, np.arange(len(values) + 1) - 0.5, label=name)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), frameon=False)  # above the bars
