"""The verb about the model that is in use: promote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app, console
from pipeline.errors import UserError


@app.command()
def promote(
    registry: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The registry, such as champions/birds; made if it is new.")
    ],
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A run folder, a stage folder or an exported file.")
    ] = None,
    if_better: Annotated[
        bool, typer.Option("--if-better", help="Only if it is better on val than the champion, by a paired test.")
    ] = False,
    level: Annotated[
        float | None,
        typer.Option(
            help="Level of that test; lower it to ask for a clearer lead.", show_default="rounds.promotion_level, 0.05"
        ),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the history.")] = "",
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the champion before the last promotion.")
    ] = False,
) -> None:
    """Make a model the champion of a registry, which then is a MODEL for every verb.

    The registry keeps each model that was champion, and a history of who, what, when and why.

    [bold]Example[/bold]: selftrain promote runs/birds --to champions/birds --if-better
    """
    from pipeline.champions.promotion import promote as promote_model

    if level is not None and not if_better:
        raise UserError(f"--level {level:g} is of the test that --if-better asks for; pass that too, or leave it out")
    done = promote_model(model, registry, reason, rollback, if_better=if_better, level=level)
    console.print(f"{registry}: {done}", soft_wrap=True, highlight=False)
