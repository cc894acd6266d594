"""The verbs that Prefect watches: `run` and `ablate`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from flows.settings import is_watched
from pipeline.cli import AcceptOption, ConfigArgument, SetOption, app
from pipeline.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.ablation.rows import Row
    from pipeline.config import Config
    from pipeline.runs.run import RunStage

__all__ = ["app"]

T = TypeVar("T")
NO_PREFECT = "Go without the server that PREFECT_API_URL or PREFECT_PROFILE names, to equal results."


@app.command()
def run(
    config: ConfigArgument,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder.", show_default="runs/NAME for NAME.yaml"),
    ] = None,
    set_: SetOption = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help=NO_PREFECT)] = False,
    accept_environment: AcceptOption = False,
) -> None:
    """Run the whole loop: teacher, labels, selection, student, and again.

    A run that was stopped or killed goes on when the same command is typed again. With PREFECT_API_URL in the
    environment, that Prefect server watches it.

    [bold]Example[/bold]: selftrain run birds.yaml --run-dir runs/longer --set student.steps=20000
    """
    from pipeline.config import load_config
    from pipeline.runs.folder import check_run_folder
    from pipeline.stages.terminal import output

    settings = load_config(config, set_ or ())
    folder = run_dir or Path("runs") / config.stem
    check_run_folder(folder, config)
    result = _run_loop(settings, folder, accept_environment, watched=is_watched() and not no_prefect)
    output().print(summary(result))
    if (report := folder / "report.html").exists():
        output().print(f"Report: {report}", soft_wrap=True)


@app.command()
def ablate(
    config: ConfigArgument,
    techniques: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Names of docs/techniques, or `all` that can be switched.")
    ],
    mode: Annotated[str, typer.Option(help="alone, drop-one or stack.")] = "alone",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from the config's on.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output folder.", show_default="runs/NAME-ablation-MODE for NAME.yaml"),
    ] = None,
    set_: SetOption = None,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time; Prefect watches one only.")] = 1,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help=NO_PREFECT)] = False,
    accept_environment: AcceptOption = False,
) -> None:
    """Measure the worth of techniques: runs that differ in one technique are compared on val, paired by seed.

    It writes DIR/rows.jsonl, table.md and ablation.png. If it was stopped or killed, it goes on when the same command
    is typed again. The same DIR serves other techniques too: equal runs are reused, and the figures from before are
    moved to DIR/earlier. A name with `no-` before it stands for taking that technique away. `python -m
    pipeline.ablation DIR/rows.jsonl` draws table and plot again.

    [bold]Example[/bold]: selftrain ablate configs/digits.yaml --techniques mixup,ema --mode drop-one --seeds 3
    """
    from pipeline.ablation.ablate import run_ablation
    from pipeline.ablation.cells import MODES, Mode, all_techniques
    from pipeline.ablation.rows import table
    from pipeline.config import load_config
    from pipeline.stages.launch import run_job
    from pipeline.stages.terminal import output, terminal

    settings = load_config(config, set_ or ())
    watched = is_watched() and not no_prefect
    if parallel > 1 and watched:
        raise UserError(f"--parallel {parallel}: Prefect watches one stage at a time; pass --no-prefect too")
    how: Mode | None = next((known for known in MODES if known == mode), None)
    if how is None:
        raise UserError(f"--mode {mode!r} is none, {did_you_mean(mode, MODES)}")
    listed = [name.strip() for name in techniques.split(",") if name.strip()]
    names = all_techniques(settings) if listed == ["all"] else listed
    folder = out or Path("runs") / f"{config.stem}-ablation-{mode}"

    def plain() -> str:
        def tell(row: Row) -> None:
            terminal().print(f"seed {row.seed}, {row.technique}: val {100 * row.val_top1:.2f}%")

        output().quiet = True  # else the summaries of all selections would bury the figures
        options: dict[str, Any] = {"on_row": tell, "accept_environment": accept_environment}
        if parallel > 1:  # bars of several runs would hide each other
            stop = threading.Event()
            options |= {"run_stage": partial(run_job, stop=stop.is_set), "parallel": parallel, "stop": stop}
            return table(run_ablation(settings, folder, names, how, seeds, **options))
        with _stages_with_bars() as run_stage:
            return table(run_ablation(settings, folder, names, how, seeds, run_stage=run_stage, **options))

    def under_prefect() -> str:
        from flows.flow import ablate as ablation_flow

        return ablation_flow(settings, folder, names, how, seeds, accept_environment)

    text = _watched(under_prefect, plain) if watched else plain()
    output().quiet = False
    output().print(text, end="", soft_wrap=True)
    output().print(f"Written: {folder}/rows.jsonl, table.md, ablation.png", soft_wrap=True)


def _run_loop(config: Config, run_dir: Path, accept_environment: bool, *, watched: bool) -> dict[str, Any]:
    from pipeline.report.page import try_report
    from pipeline.runs.loop import run_loop

    def plain() -> dict[str, Any]:
        with _stages_with_bars() as run_stage:
            result = run_loop(config, run_dir, run_stage=run_stage, accept_environment=accept_environment)
        try_report(run_dir)
        return result

    def under_prefect() -> dict[str, Any]:
        from flows.flow import self_train

        return self_train(config, run_dir, accept_environment)

    return _watched(under_prefect, plain) if watched else plain()


def _watched(call: Callable[[], T], plain: Callable[[], T]) -> T:
    """Call a flow on the user's Prefect server. If the server goes away, `plain` is called, which goes on without it,
    to the same results."""
    from flows.settings import prepare

    prepare()
    from flows.watch import ServerGone, watched

    try:
        return watched(call)
    except ServerGone as error:
        logging.getLogger("selftrain.flows").warning("Prefect's server is gone (%s); going on without it", error)
    return plain()


@contextmanager
def _stages_with_bars() -> Iterator[RunStage]:
    """Yield a function that runs a stage in child processes, with a progress bar."""
    from pipeline.stages.launch import run_job
    from pipeline.stages.progress import show_progress

    with show_progress() as show:
        yield partial(run_job, on_progress=show)


def summary(result: Mapping[str, Any]) -> Table:
    """The run as a table with one line per round, a star at the final model, and the test accuracies below."""
    from rich.table import Table

    from pipeline.runs.result import score_of

    final = result["final"]
    named = {"final model": "", "round-0 teacher": "teacher_", "control": "control_", "probe": "probe_"}
    found = {name: final.get(f"{key}test_top1") for name, key in named.items()}
    tests = [f"{name} {100 * top1:.2f}%" for name, top1 in found.items() if top1 is not None]
    for name, words in (("ensemble", "ensemble of {}"), ("mc_dropout", "mean of {} dropout samples")):
        if said := final.get(name):
            number = len(said["models"]) if "models" in said else said["samples"]
            top1 = final["test"].get(name, said["val"])["top1"]
            where = "" if name in final["test"] else "on val: "
            tests.append(f"{where}{words.format(number)} {100 * top1:.2f}%")
    table = Table(caption=f"on test: {', '.join(tests)}" if tests else None, caption_justify="left")
    table.add_column("round", justify="right")
    table.add_column("model")
    judged = any(entry.get("judged") is not None for entry in result["rounds"])  # the interval is that of top1
    for column in ("val", "judged by" if judged else "95% interval", "pseudo-labels"):  # short, to fit 80 columns
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["rounds"]:
        low, high = entry["interval"]
        is_final = entry["round"] == final["round"]
        table.add_row(
            str(entry["round"]),
            f"{entry['role']} {entry['model']}",
            f"{100 * entry['val_top1']:.2f}%{'*' if is_final else ' '}",
            f"{100 * score_of(entry):.2f}%" if judged else f"{100 * low:.2f}-{100 * high:.2f}%",
            "-" if entry["num_selected"] is None else f"{entry['num_selected']:,}",
            style="bold" if is_final else "",
        )
    return table
