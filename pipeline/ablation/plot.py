"""An ablation as a picture: the effect of every technique with its interval, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ablation.cells import BASE
from pipeline.ablation.rows import Effect, Row, effects
from pipeline.report.canvas import ACCENT, HARM, MUTED, canvas

_COLORS = {"helps": ACCENT, "harms": HARM}
_TITLES = {
    "alone": "Alone: added to a base that has none",
    "drop-one": "Drop one: with it minus without it, beside all others",
    "stack": "Stack: each added to those above it",
}


def draw_effects(rows: Sequence[Row]) -> bytes:
    """A PNG: one line per technique with its 95% interval, sorted by effect, in a stack in its order.

    Colour and words say the same: blue helps, orange-red harms, and grey is within chance, because the interval holds
    0.
    """
    found = effects(rows)
    found = found[::-1] if rows[0].mode == "stack" else sorted(found, key=lambda e: e.points)
    with canvas(height=1.1 + 0.28 * len(found), width=9.6, transparent=False) as drawing:
        (ax,) = drawing.axes
        for place, e in enumerate(found):
            color = _COLORS.get(e.verdict, MUTED)
            low, high = e.interval or (e.points, e.points)
            ax.plot([low, high], [place, place], color=color, lw=2.2, solid_capstyle="butt")
            ax.plot(e.points, place, "o", color=color, ms=6)
            ax.text(1.01, place, _words(e), color=color, fontsize=8, va="center", transform=ax.get_yaxis_transform())
        ax.axvline(0, color="black", lw=0.8)
        ax.set_yticks(range(len(found)), [e.technique for e in found])
        ax.set_ylim(-0.6, len(found) - 0.4)
        seeds = max((e.num_seeds for e in found), default=0)
        base = [row.val_top1 for row in rows if row.technique == BASE]
        of_base = f"base {100 * sum(base) / len(base):.2f}%"
        ax.set_xlabel(f"points of val accuracy, mean of {seeds} seeds with its 95% interval; {of_base}")
        ax.set_title(_TITLES[rows[0].mode])
        ax.grid(axis="y", visible=False)
    return drawing.png


def _words(effect: Effect) -> str:
    if effect.interval is None:
        return f"{effect.points:+.2f}, one seed"
    low, high = effect.interval
    said = {"within chance": "holds 0: within chance"}.get(effect.verdict, effect.verdict)
    return f"{effect.points:+.2f} ({low:+.2f} to {high:+.2f}), {said}"
