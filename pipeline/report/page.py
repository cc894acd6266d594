"""The page of a run's report: one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.report.canvas import css_width
from pipeline.report.record import RunRecord, read_run
from pipeline.report.sections import sections

log = logging.getLogger("selftrain.report")

GENERATOR = b'<meta name="generator" content="selftrain'


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from what the run has left so far; returns its path.

    Raises:
        UserError: `run_dir` is not a run folder, a file in it is broken, or its report.html is somebody's own.
    """
    path = run_dir / "report.html"
    if path.exists() and GENERATOR not in path.read_bytes()[:4096]:
        raise UserError(f"{path} is not a report of selftrain; rename it, or report on another folder")
    write_bytes(path, render(read_run(run_dir)).encode())
    return path


def try_report(run_dir: Path) -> Path | None:
    """Write RUN/report.html at the end of a run; returns its path, or None after a warning: the result, perhaps of
    days, is on disk and stands."""
    try:
        return write_report(run_dir)
    except Exception as error:
        log.warning(
            "the report could not be written (%s: %s); the result stands. Write it with: selftrain report %s",
            type(error).__name__,
            error,
            run_dir,
        )
        return None


def render(run: RunRecord) -> str:
    """The report as HTML. Everything that users can name (classes, folders, models) is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, number=number, duration=duration)
    environment.filters.update(data_uri=data_uri, css_width=css_width)
    return environment.get_template("report.html.j2").render(version=__version__, run=run, **sections(run))


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.8731 -> 87.3%. A fraction below 1 is never rounded up to 100%: 0.99999 -> >99.9%."""
    if fraction is None:
        return "\u2013"
    nearly = 1 - 10.0 ** -(digits + 2) / 2
    if nearly <= fraction < 1:
        return f">{100 - 10.0**-digits:.{digits}f}%"
    return f"{100 * fraction:.{digits}f}%"


def points(difference: float) -> str:
    """The difference of two accuracies in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "0.0"


def number(value: Any) -> str:
    """A number with its digits in groups of three; a dash for None."""
    if value is None:
        return "\u2013"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A duration as people say it: 12.3 s, 4.5 min, 1 h 05 min; a dash for None."""
    if seconds is None:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def data_uri(png: bytes) -> str:
    """A PNG as a data URI, so that it is part of the page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
