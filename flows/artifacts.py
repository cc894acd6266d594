"""The artifacts of a run in the Prefect UI: the progress of each stage, a leaderboard, and a page of plots per round.

A display must never cost a training, so an error here becomes a warning, and the run goes on.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.report.plots import per_class
from pipeline.selection.selection import read_selection
from pipeline.stages.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.methods.round import Round

UPDATE_S = 5.0
_logger = logging.getLogger("selftrain.flows")


class ProgressArtifact:
    """The progress bar of one stage in the UI, updated every few seconds."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._id: UUID | None = None
        self._next_update = 0.0

    def show(self, progress: Progress) -> None:
        """Show a report, unless one was shown a moment ago. After a failure the stage's later reports are left out."""
        if time.monotonic() < self._next_update and not progress.done >= progress.total > 0:
            return
        self._next_update = float("inf")
        percent = 100 * progress.done / progress.total if progress.total else 0.0
        text = f"{progress.stage}: {progress.done:,}/{progress.total:,} {progress.unit} {progress.text}".strip()
        with never_fatal("update the progress"):
            if self._id is None:
                created = create_progress_artifact(percent, key=self._key, description=text)
                self._id = cast(UUID, created)  # a coroutine only in async code
            else:
                update_progress_artifact(self._id, percent, description=text)
            self._next_update = time.monotonic() + UPDATE_S


def show_rounds(rounds: Sequence[Round]) -> None:
    """Show the rounds so far, in the leaderboard, and a page of the newest one."""
    with never_fatal("create the leaderboard"):
        rows = [dict(zip(COLUMNS, cells(round_), strict=True)) for round_ in rounds]
        create_table_artifact(rows, key="leaderboard", description="Val accuracy of every round, with a 95% interval")
    with never_fatal("create the round report"):
        newest = rounds[-1]
        create_markdown_artifact(
            round_page(rounds), key="round-report", description=f"Round {newest.round}: {newest.role} {newest.model}"
        )


def show_table(key: str, markdown: str) -> None:
    """Show a Markdown table as an artifact."""
    with never_fatal(f"show the {key}"):
        create_markdown_artifact(markdown, key=key)


COLUMNS = ("round", "role", "model", "val accuracy", "95% interval", "pseudo-labels kept", "verdict")


def cells(round_: Round) -> tuple[str, ...]:
    """A round as texts, one per column of COLUMNS."""
    low, high = round_.interval
    return (
        str(round_.round),
        round_.role,
        round_.model,
        f"{100 * round_.val_top1:.2f}%",
        f"{100 * low:.2f}-{100 * high:.2f}%",
        "" if round_.num_selected is None else f"{round_.num_selected:,}",
        "kept" if round_.kept else "worse than its teacher",
    )


def round_page(rounds: Sequence[Round]) -> str:
    """The page of the newest round as Markdown, in which plots are data URIs."""
    newest = rounds[-1]
    lines = [
        f"# Round {newest.round}: {newest.role}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
        *(f"| {' | '.join(cells(round_))} |" for round_ in rounds),
        "",
        image("accuracy by round", _accuracy_plot(rounds)),
        "",
    ]
    if newest.select is not None:
        summary = read_selection(newest.select).summary
        lines += ["## Selection", "", image("pseudo-labels per class", per_class(summary)), ""]
    lines += ["## Folders", "", *(f"- {name}: `{path}`" for name, path in _folders(newest))]
    return "\n".join(lines) + "\n"


def image(title: str, png: bytes) -> str:
    """A PNG as Markdown that needs no other file."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


@contextlib.contextmanager
def never_fatal(what: str) -> Iterator[None]:
    """Turn any error of the block into a warning. The server gets one try, because a stop must not wait for it."""
    impatient = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10.0}
    try:
        with temporary_settings(impatient):
            yield
    except Exception as error:  # days of training outweigh any error of a display
        _logger.warning("cannot %s in Prefect (%s: %s); the run goes on", what, type(error).__name__, error)


def _accuracy_plot(rounds: Sequence[Round]) -> bytes:
    from pipeline.report.plots import Point, accuracy_by_round
    from pipeline.report.record import read_metrics

    points = []
    for round_ in rounds:
        if (val := read_metrics(round_.train / "evaluation-val.json")) is not None:
            points.append(Point(f"{round_.role} {round_.round}", val, "kept" if round_.kept else "not kept"))
    return accuracy_by_round(points)


def _folders(round_: Round) -> Iterator[tuple[str, Path]]:
    for name, path in (("train", round_.train), ("label", round_.label), ("select", round_.select)):
        if path is not None:
            yield name, path


def result_message(result: Mapping[str, Any]) -> str:
    """The result of a run as the message of its final state."""
    test = result["final"].get("test_top1")
    return "no test split" if test is None else f"test {100 * test:.1f}%"


def show_verdict(run_dir: Path, promotion: str = "") -> None:
    """Show what the run is worth, and what became of its promotion, as Markdown."""
