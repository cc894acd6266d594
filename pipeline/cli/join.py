"""The verb by which other machines take part in a run: join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app, console


@app.command()
def join(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder that the command with runtime.nodes above 1 works in.")
    ],
) -> None:
    """Lend this machine to a run that another machine leads, until the run has ended.

    With runtime.nodes: N the command that leads waits for N - 1 machines on which this one was typed. They share the
    file system and see data and run at the same paths.

    [bold]Example[/bold]: selftrain join runs/birds
    """
    from pipeline.stages.follower import join as join_run

    join_run(folder, lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False))
