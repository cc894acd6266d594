"""The intake of a watched folder as a Prefect flow: what is new is packed, and an event says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.body import run_body
from flows.events import data_changed, emit
from pipeline.packing.intake import SETTLE_S, Intake
from pipeline.packing.intake import intake as take_in
from pipeline.stages.lock import FolderInUse

MOST_LINES = 20
"""The most bad files that get a line of the log each; quarantine.csv has all."""


def _run_name() -> str:
    return " to ".join(Path(flow_run.parameters[name]).name for name in ("source", "data"))


@flow(name="intake", flow_run_name=_run_name, persist_result=False)
def intake(
    source: str, data: str, config: str, run_dir: str, at_least: int = 1, settle_s: float = SETTLE_S
) -> State[None]:
    """Pack what is new in a watched folder, and say so by the event `selftrain.data.changed`, which starts a run.

    An intake that adds nothing emits nothing. No file of the watched folder is moved or changed.

    Args:
        source: The watched folder, in which images arrive, at any depth.
        data: The packed folder that takes them as unlabeled shards; bad files are listed in its quarantine.csv.
        config: The config of the run that is to follow.
        run_dir: The folder of that run.
        at_least: Wait until there are so many new files.
        settle_s: Leave files that changed within so many seconds for later, since they may still grow.
    """
    folder, settings, run = (Path(path).absolute() for path in (data, config, run_dir))
    log = get_run_logger()

    def announce(number: int) -> None:
        emit(data_changed(folder, number, settings, run))
        log.info("%s new images: the event tells it", f"{number:,}")

    def pack() -> State[Any]:
        try:
            done = take_in(Path(source), folder, at_least=at_least, settle_s=settle_s, announce=announce)
        except FolderInUse as error:
            return Completed(name="Waiting", message=f"new images wait: {error}")
        _log_bad(done)
        return Completed(message=str(done))

    return run_body(pack)


def _log_bad(done: Intake) -> None:
    log = get_run_logger()
    for name, why in sorted(done.bad.items())[:MOST_LINES]:
        log.warning("bad: %s: %s", name, why)
    if len(done.bad) > MOST_LINES:
        log.warning("and %d more, see %s/quarantine.csv", len(done.bad) - MOST_LINES, done.out)
