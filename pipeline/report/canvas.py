"""The figures of all plots, in one style. The colors of Okabe and Ito (2008) can be told apart by all eyes.

The background is transparent, so that the page decides its color; in dark mode the page inverts the plots.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCENT = "#0072B2"
SECOND, HARM = "#E69F00", "#D55E00"
MUTED = "#8A939C"
PALE = "#D5DBE1"
INK = "#3A434C"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A939C", "#B8A800")
MAX_DRAWN = 64
DPI = 144
WIDTH_IN = 10.4
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9AA3AC",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDE2E7",
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
}


P = ParamSpec("P")
_drawn: dict[str, bytes] = {}


def drawn_once(draw: Callable[P, bytes]) -> Callable[P, bytes]:
    """Remember plots by all that they show: the report and the pages in Prefect have some in common, and drawing one
    takes a fifth of a second. What they show must be told in full by its repr, as arrays are not."""

    @wraps(draw)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> bytes:
        key = repr((draw.__name__, args, kwargs))
        if key not in _drawn:
            if len(_drawn) == MAX_DRAWN:
                _drawn.clear()
            _drawn[key] = draw(*args, **kwargs)
        return _drawn[key]

    return remembered


class Canvas:
    """A figure in the report's style, and its PNG once it is drawn."""

    def __init__(self, figure: Figure, axes: Iterable[Axes]) -> None:
        self.figure, self.axes = figure, list(axes)
        self.png = b""


@contextmanager
def canvas(
    columns: int = 1,
    *,
    rows: int = 1,
    width: float = WIDTH_IN,
    height: float = 3.2,
    ratios: Sequence[float] = (),
    transparent: bool = True,
) -> Iterator[Canvas]:
    """Open rows of axes; their PNG is there when the block ends. It is transparent for a page, white for a file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        ratios = ratios or [1] * columns
        drawing = Canvas(figure, figure.subplots(rows, columns, squeeze=False, width_ratios=ratios).flat)
        yield drawing
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # Class names in scripts that matplotlib's font lacks show as boxes; the page's tables show them in full.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="png", transparent=transparent, metadata={"Software": None})
        drawing.png = buffer.getvalue()


def css_width(png: bytes) -> int:
    """The width in CSS pixels at which a plot's letters are as large as the page's; it reads the PNG's header."""
    return round(int.from_bytes(png[16:20], "big") * 96 / DPI)


def color_of(index: int) -> str:
    """The color of a round's curve."""
    return COLORS[index % len(COLORS)]
