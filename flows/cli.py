"""The console script `selftrain`: the pipeline's verbs, and `run`, the whole loop under Prefect."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.cli import AcceptOption, ConfigArgument, SetOption, app
from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.config import Config


@app.command()
def run(
    config: ConfigArgument,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Run folder.", show_default="runs/NAME for NAME.yaml"),
    ] = None,
    set_: SetOption = None,
    no_prefect: Annotated[bool, typer.Option("--no-prefect", help="Run without Prefect, to equal results.")] = False,
    accept_environment: AcceptOption = False,
) -> None:
    """Run the whole loop: teacher, labels, selection, student, and again.

    Stopped or killed, it goes on when the same command is typed again. Prefect watches it, on an embedded server or on
    yours if PREFECT_API_URL is set.

    [bold]Example[/bold]: selftrain run birds.yaml --run-dir runs/longer --set student.steps=20000
    """
    from rich.console import Console

    from pipeline.config import load_config
    from pipeline.report.page import write_report
    from pipeline.runs.folder import check_run_folder

    settings = load_config(config, set_ or ())
    folder = run_dir or Path("runs") / config.stem
    check_run_folder(folder, config)
    result = _run_loop(settings, folder, accept_environment, watched=not no_prefect)
    console = Console(markup=False, emoji=False, highlight=False)  # paths may hold brackets
    console.print(summary(result))
    try:
        report = write_report(folder)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is: the result, perhaps of days, is on disk and stands
        logging.getLogger("selftrain.flows").warning(
            "the report could not be written (%s: %s); the result stands. Write it with: selftrain report %s",
            type(error).__name__,
            error,
            folder,
        )
    else:
        console.print(f"Report: {report}", soft_wrap=True)


def _run_loop(config: Config, run_dir: Path, accept_environment: bool, *, watched: bool) -> dict[str, Any]:
    from functools import partial

    from pipeline.runs.loop import run_loop
    from pipeline.stages.launch import run_job
    from pipeline.stages.progress import show_progress, terminal

    if watched:
        from flows.settings import prepare

        if prepare(run_dir):
            from flows.server import start_server

            with terminal().status("starting Prefect's embedded server"):
                os.environ["PREFECT_API_URL"] = start_server()
        from flows.watch import ServerGone, run_watched

        try:
            return run_watched(config, run_dir, accept_environment)
        except ServerGone as error:
            logging.getLogger("selftrain.flows").warning("Prefect's server is gone (%s); going on without it", error)
    with show_progress() as show:
        run_stage = partial(run_job, on_progress=show)
        return run_loop(config, run_dir, run_stage=run_stage, accept_environment=accept_environment)


def summary(result: Mapping[str, Any]) -> Table:
    """The run as a table, a line a round, with a star at the final model's and the test accuracies below."""
    from rich.table import Table

    final = result["final"]
    named = (("final model", "test_top1"), ("round-0 teacher", "teacher_test_top1"), ("control", "control_test_top1"))
    tests = [f"{name} {100 * final[key]:.2f}%" for name, key in named if final[key] is not None]
    table = Table(caption=f"on test: {', '.join(tests)}" if tests else None, caption_justify="left")
    table.add_column("round", justify="right")
    table.add_column("model")
    for column in ("val", "95% interval", "pseudo-labels"):  # short names: with them it fits 80 columns
        table.add_column(column, justify="right", no_wrap=True)
    for entry in result["rounds"]:
        low, high = entry["interval"]
        is_final = entry["round"] == final["round"]
        table.add_row(
            str(entry["round"]),
            f"{entry['role']} {entry['model']}",
            f"{100 * entry['val_top1']:.2f}%{'*' if is_final else ' '}",
            f"{100 * low:.2f}-{100 * high:.2f}%",
            "-" if entry["num_selected"] is None else f"{entry['num_selected']:,}",
            style="bold" if is_final else "",
        )
    return table


# ---------------------------------------------------------------------------------------------------- the entry point


def main() -> NoReturn:
    """The console entry: runs a verb and turns its outcome into a message and an exit code (pipeline.errors)."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _interrupt)
    _log_to_terminal()
    code = 0
    try:
        app(prog_name="selftrain")
    except UserError as error:
        code = _say(f"error: {error}", EXIT_USER_ERROR)
    except Interrupted as request:
        code = _say(f"{request}. Type the same command to go on.", EXIT_INTERRUPTED)
    except Exception as error:
        from pipeline.stages.launch import StageFailed

        if not isinstance(error, StageFailed):
            raise
        code = _say(f"error: {error}", EXIT_FAILURE)
    sys.exit(code)


def _interrupt(_signum: int, _frame: object) -> NoReturn:
    raise Interrupted("stopped; what was finished is saved")


def _say(message: str, code: int) -> int:
    from pipeline.stages.progress import terminal

    color = "yellow" if code == EXIT_INTERRUPTED else "red"
    terminal().print(message, style=color, markup=False, highlight=False, soft_wrap=True)
    return code


class _Terminal(logging.Handler):
    """Warnings, printed above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from pipeline.stages.progress import terminal

        text = f"{record.levelname.lower()}: {record.getMessage()}"
        terminal().print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _log_to_terminal() -> None:
    logger = logging.getLogger("selftrain")
    logger.addHandler(_Terminal(logging.WARNING))
    logger.propagate = False


if __name__ == "__main__":
    main()
