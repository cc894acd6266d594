"""The progress of a stage: the child process writes it into a small file, and the parent process polls and shows it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.files import atomic_file, read_as
from pipeline.stages.ranks import env_rank

if TYPE_CHECKING:
    from rich.console import Console

INTERVAL_S = 0.2
_last_report: dict[Path, float] = {}
_began: dict[tuple[Path, str], tuple[float, int]] = {}
"""When this process reported first of a stage, in some unit, and what was done by then: a resumed stage begins in its
middle."""


@dataclass(frozen=True)
class Progress:
    """The progress of a stage: `done` of `total` (0: unknown) in `unit`, and a short text such as the last loss."""

    stage: str
    done: int
    total: int
    unit: str
    text: str
    left_s: float | None = None
    """The seconds that are left at the mean rate since the stage's process began; None if not known, and at the end."""

    @property
    def left(self) -> str:
        """What is left in words, such as `12 min left`; empty if it is not known, and at the end."""
        if self.left_s is None:
            return ""
        minutes = round(self.left_s / 60)
        if self.left_s < 100:
            return f"{math.ceil(self.left_s)} s left"
        return f"{minutes} min left" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min left"


class _Report(TypedDict):
    """The content of progress.json."""

    done: int
    total: int
    unit: str
    text: str
    left_s: NotRequired[float | None]


def report(out: Path, done: int, total: int, unit: str, text: str = "") -> None:
    """Report the progress of the stage in folder `out`, at most every 0.2 s; the last report is never left out.

    A call is cheap enough for every step. Only rank 0 reports. The file is renamed into place but not fsynced, and a
    full disk is ignored, because this is a display: the stage's own writes tell of a full disk.
    """
    now = time.monotonic()
    if env_rank() != 0 or (done < total and now - _last_report.get(out, -1.0) < INTERVAL_S):
        return
    _last_report[out] = now
    if not out.is_dir():
        return
    since, before = _began.setdefault((out, unit), (now, done))
    left_s = (total - done) * (now - since) / (done - before) if total > done > before else None
    with contextlib.suppress(UserError), atomic_file(out / "progress.json", durable=False) as file:
        file.write(json.dumps({"done": done, "total": total, "unit": unit, "text": text, "left_s": left_s}).encode())


def read_progress(out: Path, stage: str) -> Progress | None:
    """The last report of the stage in folder `out`; None before the first report, and where the file is damaged."""
    try:
        found = read_as(_Report, out / "progress.json")
        return Progress(stage, **{key: found[key] for key in _Report.__annotations__ if key in found})
    except UserError:  # it is a display: no run ends because of it
        return None


@contextlib.contextmanager
def show_progress(console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show each stage that reports as one line with a bar; yields the function that takes the reports.

    If the output is not a terminal, one line is printed when a stage begins.
    """
    from rich import progress as bars

    from pipeline.stages.terminal import terminal

    console = console or terminal()
    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[left]}", style="progress.remaining"),
        bars.TextColumn("{task.fields[text]}", markup=False),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as display:

        def show(now: Progress) -> None:
            fields: Any = {"unit": now.unit, "text": now.text, "left": now.left}
            if now.stage not in tasks:
                for earlier in tasks.values():
                    display.stop_task(earlier)
                tasks[now.stage] = display.add_task(now.stage, total=now.total, **fields)
                if not console.is_terminal:
                    console.print(now.stage, highlight=False)
            task = tasks[now.stage]
            display.update(task, completed=now.done, total=now.total, **fields)
            if now.done >= now.total > 0:
                display.stop_task(task)

        yield show
