"""The rounds of a run as a table, renewed after every round; and tables of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.artifacts.display import never_fatal
from flows.artifacts.keys import artifact_key
from pipeline.report.page import percent

if TYPE_CHECKING:
    from pipeline.methods.round import Round

COLUMNS = ("round", "role", "model", "val accuracy", "95% interval", "pseudo-labels kept", "verdict")


def show_rounds(run_dir: Path, rounds: Sequence[Round]) -> None:
    """Show the rounds so far."""
    with never_fatal("create the leaderboard"):
        rows = [dict(zip(COLUMNS, cells(round_), strict=True)) for round_ in rounds]
        about = f"{run_dir.name}: val accuracy of every round, with a 95% interval"
        create_table_artifact(rows, key=artifact_key(run_dir, "leaderboard"), description=about)


def show_table(run_dir: Path, what: str, markdown: str) -> None:
    """Show a Markdown table of a run as an artifact."""
    with never_fatal(f"show the {what}"):
        create_markdown_artifact(markdown, key=artifact_key(run_dir, what), description=f"{run_dir.name}: {what}")


def cells(round_: Round) -> tuple[str, ...]:
    """A round as texts, one per column of COLUMNS."""
    low, high = round_.interval
    return (
        str(round_.round),
        round_.role,
        round_.model,
        percent(round_.val_top1, 2),
        f"{percent(low, 2)[:-1]} to {percent(high, 2)}",
        "" if round_.num_selected is None else f"{round_.num_selected:,}",
        "kept" if round_.kept else "worse than its teacher",
    )
