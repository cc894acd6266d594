"""The verb about a watched folder: intake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app, bar, console


@app.command()
def intake(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder that images arrive in.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The packed folder that takes them.")],
    at_least: Annotated[int, typer.Option(min=1, help="Wait until there are so many new files.")] = 1,
    settle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Leave files that changed within so many seconds for later.")
    ] = 60.0,
    shard_size: Annotated[int, typer.Option(min=1, help="At most this many images per shard.")] = 10_000,
    workers: Annotated[int, typer.Option(min=0, help="Decoding threads; 0 means one per core.")] = 0,
) -> None:
    """Pack what is new in a watched folder as unlabeled shards.

    No file of SOURCE is moved or changed. DIR/intake.csv remembers each, so that it is read once; bad files are listed
    in DIR/quarantine.csv, and read again when they change. The same images twice add nothing. While a run reads DIR,
    its new images wait.

    [bold]Example[/bold]: selftrain intake incoming/ --data shards/birds
    """
    from pipeline.packing.intake import intake as take_in
    from pipeline.packing.left_out import QUARANTINE

    with bar("packing") as progress:
        done = take_in(
            source,
            data,
            at_least=at_least,
            settle_s=settle,
            shard_size=shard_size,
            workers=workers,
            progress=progress,
        )
    for name, why in sorted(done.bad.items())[:10]:
        console.print(f"bad: {name}: {why}", soft_wrap=True)
    if done.bad:
        console.print(f"{data / QUARANTINE} lists all bad files", soft_wrap=True)
    console.print(str(done), soft_wrap=True, highlight=False)
