"""An ablation as a picture: the effect of every technique with its interval."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ablation.rows import Row, effects
from pipeline.report.plots import ACCENT, MUTED, canvas


def draw_effects(rows: Sequence[Row]) -> bytes:
    """A PNG: one line per technique, sorted by effect; grey where the interval holds 0."""
    found = sorted(effects(rows), key=lambda e: e.points)
    with canvas(height=0.9 + 0.28 * len(found), width=8.0, transparent=False) as drawing:
        (ax,) = drawing.axes
        for place, e in enumerate(found):
            color = ACCENT if e.verdict in ("helps", "harms") else MUTED
            low, high = e.interval or (e.points, e.points)
            ax.plot([low, high], [place, place], color=color, lw=2.2, solid_capstyle="butt")
            ax.plot(e.points, place, "o", color=color, ms=6)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(len(found)), [e.technique for e in found])
        ax.set_ylim(-0.6, len(found) - 0.4)
        seeds = max((e.num_seeds for e in found), default=0)
        ax.set_xlabel(f"points of val accuracy, mean of {seeds} seeds with its 95% interval")
        ax.set_title({"alone": "Alone", "drop-one": "Drop one", "stack": "Stack"}[rows[0].mode])
        ax.grid(axis="y", visible=False)
    return drawing.png
