"""The verbs about models and runs: evaluate, export, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from pipeline.cli.app import app, as_split, check_split, console, read_here
from pipeline.config import Evaluate, parse

OthersOption = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="MODEL", help="Another model, to average with; repeat it for more."),
]


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, a stage folder or an exported file.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A packed folder, or any image folder or tar.")],
    split: Annotated[str, typer.Option(callback=check_split, help="Split of a packed folder.")] = "test",
    others: OthersOption = None,
    mc_dropout: Annotated[int, typer.Option(min=0, help="Passes with dropout on to average; 0 is without.")] = 0,
    crops: Annotated[
        Literal["center", "ten"] | None, typer.Option(help="Patches per image whose probabilities are averaged.")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="1,1.143", help="Sides at which images are read, by the model's own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: accuracy, likelihood, calibration, and each class; the classes that it knows least come first.

    With more models the mean of their probabilities is measured, and each of them beside it.

    [bold]Example[/bold]: selftrain evaluate runs/birds shards/birds --split test
    """
    from pipeline.cli.class_table import class_table, member_table, notes
    from pipeline.evaluate.on_demand import evaluate_on, how_to_see

    how, runtime = how_to_see(model)
    given = {"crops": crops, "scales": None if scales is None else scales.split(","), "mc_dropout": mc_dropout or None}
    asked = {key: value for key, value in given.items() if value is not None}
    how = parse(Evaluate, {**dict(how), **asked}, "--crops, --scales, --mc-dropout")
    found = evaluate_on(model, read_here(data), as_split(split) or "test", how, runtime, others or ())
    if as_json:
        print(json.dumps(found.to_json()))
        return
    table = Table("figure", "value")
    for name in ("top1", "top5", "nll", "ece", "balanced_accuracy", "macro_f1"):
        table.add_row(name, f"{getattr(found.metrics, name):.4f}")
    table.add_row("num_samples", str(found.metrics.num_samples))
    console.print(table)
    if found.members:
        console.print(member_table(found))
    console.print(class_table(found))
    for line in notes(found):
        console.print(line, highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a train stage.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="Where to write the weights.")],
) -> None:
    """Write the final model as FILE.safetensors and FILE.json, which plain timm loads.

    [bold]Example[/bold]: selftrain export runs/birds --out birds.safetensors
    """
    from pipeline.models.format import export_model
    from pipeline.models.snippet import snippet

    info = export_model(run, out)
    console.print(f"{out} and {out.with_suffix('.json')} written. In Python:\n", soft_wrap=True)
    console.print("\n".join(snippet(info, out)), soft_wrap=True)


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/report.html, one file that shows everything a run did, finished or not.

    [bold]Example[/bold]: selftrain report runs/birds
    """
    from pipeline.report import write_report

    console.print(f"report: {write_report(run)}", soft_wrap=True)
