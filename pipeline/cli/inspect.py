"""The verb that looks into networks: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from pipeline.cli.app import ConfigArgument, SetOption, app, console
from pipeline.config import load_config
from pipeline.errors import UserError


@app.command()
def inspect(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where to write the plot; figures beside it.")],
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="Overrides that make one row of the plot. Give several."),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(metavar="N", min=0, help="Look after N steps. Default 0.")] = None,
    images: Annotated[int, typer.Option(metavar="N", min=2, help="Labeled images that pass the network.")] = 256,
    overrides: SetOption = None,
) -> None:
    """Plot what each layer of the teacher gives, at initialization and after some steps, for variants of a config.

    [bold]Example[/bold]: selftrain inspect birds.yaml --variant teacher.activation=tanh --variant
    teacher.activation=relu --steps 0 --steps 50 --out layers.png
    """
    from dataclasses import replace

    import torch

    from pipeline.cli.app import bar
    from pipeline.files import write_bytes, write_json
    from pipeline.inspection import draw, inspect_variants, parse_variant
    from pipeline.runs.folder import resolve_config

    if out.suffix != ".png":
        raise UserError(f"--out {out} must end in .png; the figures go beside it, as .json")
    configs = {}
    for name in variant or [""]:
        settings = load_config(config, [*(overrides or []), *(parse_variant(name) if name else [])])
        configs[name or config.name] = resolve_config(settings, None)
    torch.set_num_threads(max(1, next(iter(configs.values())).runtime.threads))
    at = sorted(set(steps or [0]))
    with bar("steps") as on_step:
        found = list(inspect_variants(configs, at, images, lambda name, done: on_step(done, max(at))))
    shown = [replace(one, variant=one.variant.replace("teacher.", "")) for one in found]
    write_bytes(out, draw(shown))
    write_json(out.with_suffix(".json"), [one.to_json() for one in found])
    table = Table(
        Column("variant", overflow="fold"),
        "step",
        "std, first layer",
        "std, last layer",
        "zeros, last",
        "saturated, last",
    )
    for one in shown:
        first, last = one.layers[0], one.layers[-1]
        figures = (f"{first.std:.2g}", f"{last.std:.2g}", f"{last.zeros:.1%}", f"{last.saturated:.1%}")
        table.add_row(one.variant, str(one.step), *figures)
    console.print(table)
    console.print(f"{out} and {out.with_suffix('.json')} written", soft_wrap=True, highlight=False)
