"""The plots of the report as PNG bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.arrays import F64Array
from pipeline.evaluate.metrics import Metrics, ReliabilityBins
from pipeline.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    PALE,
    SECOND,
    WIDTH_IN,
    Canvas,
    canvas,
    color_of,
    drawn_once,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.selection.summary import Histogram, Summary

PAIR_HEIGHT_IN = 2.9
MAX_NAMED_CLASSES = 25
MIN_BIN = 10
"""The reliability of a bin with fewer samples than this is noise, so it is not drawn."""

Standing = Literal["kept", "not kept", "control"]


@dataclass(frozen=True)
class Point:
    """One model in the plot of accuracies."""

    name: str
    val: Metrics
    standing: Standing


@drawn_once
def accuracy_by_round(points: Sequence[Point]) -> bytes:
    """Val accuracies with 95% intervals, one point per model: hollow for students not kept, grey for the control."""
    with canvas(height=2.9) as drawing:
        (ax,) = drawing.axes
        rounds = [(x, 100 * p.val.top1) for x, p in enumerate(points) if p.standing != "control"]
        ax.plot(*zip(*rounds, strict=True), color=ACCENT, lw=1, alpha=0.4, zorder=0)
        for x, point in enumerate(points):
            low, y, high = (100 * v for v in (point.val.interval[0], point.val.top1, point.val.interval[1]))
            color = MUTED if point.standing == "control" else ACCENT
            ax.errorbar(x, y, [[y - low], [high - y]], color=color, capsize=4, lw=1.6)
            ax.plot(x, y, "o", ms=8, color=color, mfc="white" if point.standing == "not kept" else color, mew=1.6)
            ax.annotate(f"{y:.1f}", (x, y), (10, -3), textcoords="offset points", weight="bold", color=INK)
        ax.set_xticks(range(len(points)), [p.name for p in points])
        ax.set_xlim(-0.5, max(len(points), 4) - 0.4)
        ax.set_ylabel("val accuracy (%)")
        ax.grid(axis="x", visible=False)
    return drawing.png


Curve = tuple[str, F64Array, F64Array]
"""Name, x [N], y [N]."""


def curve(name: str, lines: Sequence[Mapping[str, float | None]], key: str) -> Curve:
    """One column of metrics.jsonl over the steps at which it was measured."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return name, np.array(steps, float), np.array(values, float)


def learning_curves(losses: Sequence[Curve], accuracies: Sequence[Curve], names: Sequence[str] = ()) -> bytes:
    """Training losses and val accuracies over steps, one line per training. x is steps, y a loss or a fraction.

    `names` are those of all trainings of the page, in the order of their colors.
    """
    colors = _colors([*names, *(name for name, _, _ in [*losses, *accuracies])])
    with canvas(2, height=3.4) as drawing:
        left, right = drawing.axes
        for name, x, y in losses:
            left.plot(x, y, color=colors[name], alpha=0.22, lw=0.8)
            left.plot(x, smoothed(y), color=colors[name], label=name)
        for name, x, y in accuracies:
            right.plot(x, 100 * y, "o-", ms=3.5, color=colors[name], label=name)
        left.set(title="Training loss", xlabel="step", ylabel="loss (nats)", xlim=(0, None))
        right.set(title="Val accuracy (EMA weights)", xlabel="step", ylabel="accuracy (%)", xlim=(0, None))
        _legend_below(drawing)
    return drawing.png


def _colors(names: Iterable[str]) -> dict[str, str]:
    return {name: color_of(number) for number, name in enumerate(dict.fromkeys(names))}


def _legend_below(drawing: Canvas) -> None:
    """One legend for all axes, outside them, where it hides no curve."""
    handles: dict[str, Any] = {}
    for ax in drawing.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        widest_in = 0.75 + 0.072 * max(map(len, handles))  # of a line with its mark, by the size of letters
        ncols = min(len(handles), max(1, int(WIDTH_IN / widest_in)))
        drawing.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols)


def feedback_curves(curves: Mapping[str, Curve], unit: str) -> bytes:
    """A student's feedback to its teacher: the feedback with its baseline, the cosine of the two gradients, and the
    feedback's gradient relative to that of the consistency loss.

    Args:
        curves: The curves `feedback`, `baseline`, `cosine` and `ratio`; the last two may be missing.
        unit: What the feedback measures, as the label of its axis.
    """
    with canvas(2, height=3.2) as drawing:
        left, right = drawing.axes
        _, x, h = curves["feedback"]
        left.plot(x, h, color=ACCENT, alpha=0.22, lw=0.8)
        left.plot(x, smoothed(h), color=ACCENT, label="feedback")
        left.plot(*curves["baseline"][1:], color=SECOND, label="baseline")
        left.axhline(0, color=MUTED, lw=1)
        if "cosine" in curves:
            right.plot(curves["cosine"][1], smoothed(curves["cosine"][2]), color=ACCENT, label="cosine of gradients")
        if "ratio" in curves:
            right.plot(curves["ratio"][1], smoothed(curves["ratio"][2]), color=SECOND, label="|feedback| / |UDA|")
        right.axhline(0, color=MUTED, lw=1)
        left.set(title="Feedback", xlabel="step", ylabel=unit, xlim=(0, None))
        right.set(title="Gradients", xlabel="step", xlim=(0, None))
        _legends(drawing.axes)
    return drawing.png


def teacher_and_student(shares: Sequence[Curve], accuracies: Sequence[Curve]) -> bytes:
    """The share of predictions that are sure enough to teach, how often the student agrees, and val accuracies."""
    with canvas(2, height=3.2) as drawing:
        left, right = drawing.axes
        for i, (name, x, y) in enumerate(shares):
            left.plot(x, 100 * smoothed(y), color=color_of(i), label=name)
        for i, (name, x, y) in enumerate(accuracies):
            right.plot(x, 100 * y, "o-", ms=3.5, color=color_of(i), label=name)
        left.set(title="Unlabeled images", xlabel="step", ylabel="share (%)", xlim=(0, None))
        right.set(title="Val accuracy (EMA weights)", xlabel="step", ylabel="accuracy (%)", xlim=(0, None))
        _legends(drawing.axes)
    return drawing.png


def _legends(axes: Sequence[Axes]) -> None:
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8.5)


def smoothed(y: F64Array) -> F64Array:
    """The centred moving mean [N] of a curve [N], over a twentieth of it; the window is shorter at the ends."""
    half = max(1, len(y) // 40)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    where = np.arange(len(y))
    low, high = np.maximum(where - half, 0), np.minimum(where + half + 1, len(y))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def calibration(bins: Mapping[str, ReliabilityBins], names: Sequence[str] = ()) -> bytes:
    """The histogram of confidences beside the reliability diagram, one line per model; `names` as in the curves."""
    colors = _colors([*names, *bins])
    with canvas(2, height=3.9, ratios=[1.35, 1]) as drawing:
        left, right = drawing.axes
        right.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=(0, (4, 3)))
        for name, b in bins.items():
            full = b.counts >= MIN_BIN
            left.stairs(100 * b.counts / b.counts.sum(), b.edges, color=colors[name], lw=1.7)
            right.plot(b.confidence[full], b.accuracy[full], "o-", ms=3.5, color=colors[name], label=name)
        left.set(title="Confidence", xlabel="confidence", ylabel="share of images (%)", xlim=(0, 1))
        right.set(title="Reliability", xlabel="mean confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
        right.set_aspect("equal")
        _legend_below(drawing)
    return drawing.png


@drawn_once
def confidence_histogram(histogram: Histogram, *thresholds: float) -> bytes:
    """The histogram of the confidences of a round's pseudo-labels; lines show the threshold, or those of classes."""
    with canvas(width=WIDTH_IN * 0.4, height=PAIR_HEIGHT_IN) as drawing:
        (ax,) = drawing.axes
        ax.stairs(histogram["all"], histogram["edges"], fill=True, color=PALE, label="all")
        ax.stairs(histogram["kept"], histogram["edges"], fill=True, color=ACCENT, label="kept")
        for number, at in enumerate(sorted({at for at in thresholds if at > 0})):
            thin = 1.6 / len(thresholds) ** 0.5
            ax.axvline(at, color=SECOND, lw=thin, label=None if number else "threshold")
        ax.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
        ax.grid(axis="x", visible=False)
        _title(ax, "Confidence")
    return drawing.png


@drawn_once
def per_class(summary: Summary) -> bytes:
    """Pseudo-labels per class: predicted, kept, with copies, and the number that the labeled images' mix would give."""
    classes = summary["classes"]
    names = [shortened(c["name"]) for c in classes]
    with canvas(width=WIDTH_IN * 0.58, height=PAIR_HEIGHT_IN) as drawing:
        (ax,) = drawing.axes
        x, are_named = np.arange(len(classes)), len(classes) <= MAX_NAMED_CLASSES

        def bars(name: str, width: float, **style: Any) -> None:
            heights = [c[name] for c in classes]  # type: ignore[literal-required]
            if are_named:
                ax.bar(x, heights, width, **style)
            else:  # one outline in place of a rectangle per class
                ax.stairs(heights, np.arange(len(x) + 1) - 0.5, fill=True, **style)

        bars("predicted", 0.86, color=PALE, label="predicted")
        bars("kept", 0.54, color=ACCENT, label="kept", zorder=3)
        bars("copied", 0.54, color=SECOND, label="copies")
        expected = [c["labeled_prior"] * summary["num_rows"] for c in classes]
        ax.plot(x, expected, "_", ms=min(14, 200 / len(x)), mew=1.6, color=INK, label="labeled mix", zorder=4)
        if are_named:
            crowded = len(names) * max(map(len, names)) > 62
            ax.set_xticks(x, names, rotation=35 if crowded else 0, ha="right" if crowded else "center",
                          rotation_mode="anchor", parse_math=False)  # fmt: skip
        else:
            ax.set_xticks([])
            ax.set_xlabel(f"{len(classes)} classes")
        ax.set_ylabel("images")
        ax.grid(axis="x", visible=False)
        _title(ax, "Pseudo-labels per class")
    return drawing.png


def _title(ax: Axes, title: str) -> None:
    """Put a title above the data, on the left, and the legend on its right."""
    ax.set_title(title)
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, fontsize=8.5, borderaxespad=0.2,
              handlelength=1.2, columnspacing=1.1)  # fmt: skip


def shortened(name: str, length: int = 14) -> str:
    """A class name, shortened to fit under a bar."""
    return name if len(name) <= length else name[: length - 1] + "\u2026"
