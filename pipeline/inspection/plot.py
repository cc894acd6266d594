"""The figure of the lecture: mean and standard deviation of each layer, and the histograms of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.inspection.activity import LayerStatistics
from pipeline.inspection.variants import Snapshot
from pipeline.report.canvas import ACCENT, MUTED, SECOND, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_HISTOGRAMS = 10
_TINY = 1e-12


def draw(snapshots: Sequence[Snapshot]) -> bytes:
    """A PNG with a row per snapshot: statistics, gradients, and the histograms of up to ten layers."""
    columns = 2 + max(len(_chosen(snapshot.layers)) for snapshot in snapshots)
    ratios = [2.4, 2.4] + [1] * (columns - 2)
    rows = len(snapshots)
    with canvas(columns, rows=rows, width=16, height=1.9 * rows, ratios=ratios, transparent=False) as drawing:
        gradients = [layer.gradient for s in snapshots for layer in s.layers if layer.gradient > 0] or [1.0]
        for number, snapshot in enumerate(snapshots):
            row = drawing.axes[number * columns : (number + 1) * columns]
            _statistics(row[0], snapshot)
            _gradients(row[1], snapshot, min(gradients), max(gradients))
            _histograms(row[2:], snapshot.layers)
            if number == len(snapshots) - 1:
                for ax in row[:2]:
                    ax.set_xlabel("layer")
    return drawing.png


def _chosen(layers: Sequence[LayerStatistics]) -> list[int]:
    return [int(number) for number in np.unique(np.linspace(0, len(layers) - 1, MAX_HISTOGRAMS).round())]


def _statistics(ax: Axes, snapshot: Snapshot) -> None:
    x = range(1, len(snapshot.layers) + 1)
    ax.plot(x, [layer.mean for layer in snapshot.layers], "o-", ms=3, color=MUTED, label="mean")
    ax.plot(x, [layer.std for layer in snapshot.layers], "o-", ms=3, color=ACCENT, label="std")
    for name, color in (("zeros", SECOND), ("saturated", "#CC79A7")):
        shares = [getattr(layer, name) for layer in snapshot.layers]
        if any(shares):
            ax.plot(x, shares, "--", lw=1.2, color=color, label=f"share {name}")
    ax.set_title(f"{snapshot.variant}, step {snapshot.step}", fontsize=9, loc="left")
    ax.legend(fontsize=7)


def _gradients(ax: Axes, snapshot: Snapshot, smallest: float, largest: float) -> None:
    """On the scale that all rows share. There is no title: that of the row is longer than its first plot."""
    x = range(1, len(snapshot.layers) + 1)
    ax.semilogy(x, [layer.gradient or np.nan for layer in snapshot.layers], "o-", ms=3, color=ACCENT)
    ax.set_ylim(smallest / 3, largest * 3)
    ax.set_ylabel("gradient (RMS)", fontsize=8)


def _histograms(axes: Sequence[Axes], layers: Sequence[LayerStatistics]) -> None:
    """All of a row over the same range of values, so that a collapse shows as a line. Exact zeros, whose share has a
    line of its own, are left out: half of what a ReLU gives, they would hide the rest."""
    low = min(float(layer.values.min()) for layer in layers)
    high = max(float(layer.values.max()) for layer in layers)
    span = max(high - low, _TINY)
    for ax, number in zip(axes, _chosen(layers), strict=False):
        ax.hist(layers[number].values[layers[number].values != 0], bins=40, range=(low, low + span), color=ACCENT)
        ax.set_title(str(number + 1), fontsize=8)
        ax.set_yticks([])
        ax.tick_params(labelsize=6.5)
    for ax in axes[len(_chosen(layers)) :]:
        ax.set_axis_off()
