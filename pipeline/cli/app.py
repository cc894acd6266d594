"""The command: what all verbs share. Every other file here has the verbs about one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import SPLITS, Split
from pipeline.errors import UserError, did_you_mean
from pipeline.stages.terminal import output

app = typer.Typer(
    name="selftrain",
    help="Turn a few labeled images and many unlabeled ones into a better classifier.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
console = output()

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML config.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a config key.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
AcceptOption = Annotated[
    bool, typer.Option("--accept-environment", help="Resume what was begun with other versions or threads.")
]


@app.callback()
def selftrain(
    plugin: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.py", help="A file of yours that registers methods, techniques, models or stages."),
    ] = None,
) -> None:
    """Turn a few labeled images and many unlabeled ones into a better classifier."""
    from pipeline.stages.plugins import add_plugins

    add_plugins(plugin or [])


def check_split(value: str | None) -> str | None:
    """For options that name a split: refuse other values."""
    if value is not None and value not in SPLITS:
        raise typer.BadParameter(f"{value!r} is no split, {did_you_mean(value, SPLITS)}")
    return value


def as_split(value: str | None) -> Split | None:
    """A checked value as the type that the pipeline takes."""
    return next((split for split in SPLITS if split == value), None)


def read_here(path: Path) -> Path:
    """A folder that a command reads: itself, or of an address the mirror of the packed folder there.

    Raises:
        UserError: it is an address of another kind, of no packed folder, or one that cannot be reached.
    """
    from pipeline.config import Data, parse
    from pipeline.remote import Remote
    from pipeline.shards.manifest import MANIFEST
    from pipeline.shards.split import folder_of

    data = parse(Data, {"root": path}, str(path))
    assert data.root is not None
    folder = folder_of(data.root, data)
    if isinstance(data.root, Remote) and not (folder / MANIFEST).exists():
        raise UserError(f"{data.root} has no {MANIFEST}, and only packed folders are read there; download what it has")
    return folder


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yields the function that is told how many of how many are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.stages.terminal import terminal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown_on = terminal()
    with Progress(*columns, console=shown_on, transient=True, disable=not shown_on.is_terminal) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
