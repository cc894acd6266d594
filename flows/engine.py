"""The command of a deployment's runs, `selftrain-engine` in the place of `python -m prefect.engine`: it keeps the
engine, which runs the flow.

A worker that stops kills the process that it started at once, so that nothing could be saved and nobody would say what
became of the run. Here that process is the keeper. When it is killed, the kernel sends the engine a SIGTERM, and the
engine saves and puts the run back into the queue, also before its flow has begun. When the engine itself is killed,
such as for want of memory, the keeper does that. The engine's output is a display: it may break with the worker that
read it.

`selftrain-engine COMMAND ...` keeps a command that starts the engine elsewhere, such as srun for a run on several
machines. If it ends with an error, as when a machine is lost, the run goes back into the queue, unless it has a state.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
from types import FrameType
from typing import NoReturn
from uuid import UUID

from pipeline.stages.environment import child_variables
from pipeline.stages.owner import PARENT_VARIABLE, die_with_parent
from pipeline.stages.streams import keep_streams

KEPT_VARIABLE = "SELFTRAIN_KEPT"
"""Tells the engine that it is kept."""
STOPS = (signal.SIGTERM, signal.SIGINT)
COMMAND = [sys.executable, "-m", "flows.engine"]
_STOPPED = "stopped"
"""The value of the variable in an engine that was stopped while it ran no flow."""


def main() -> int:
    """Keep an engine; returns the exit code for the worker, which is 0 if the run has its state."""
    keep_streams()
    kept = os.environ.get(KEPT_VARIABLE)
    if kept is not None:
        return _report("the engine was stopped", 128 + signal.SIGTERM) if kept == _STOPPED else _be_the_engine()

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        engine.terminate()

    # Signals wait until there is an engine, which lets them in when it can say what became of the run. In a session of
    # its own none reaches it but through the keeper.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    for number in STOPS:
        signal.signal(number, pass_on)
    launcher = sys.argv[1:]
    if launcher and shutil.which(launcher[0]) is None:
        sys.exit(f"{launcher[0]} is no command here; mend the job variable `command` of the deployment")
    command = [*COMMAND, *launcher]
    engine = subprocess.Popen(command, env=child_variables({KEPT_VARIABLE: "1"}), start_new_session=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    code = engine.wait()
    if code == 0 or (code > 0 and not launcher):
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return _report(f"{launcher[0] if launcher else 'the engine'} {how}", 128 - code if code < 0 else code)


def _be_the_engine() -> int:
    signal.signal(signal.SIGTERM, _stop)
    die_with_parent(signal.SIGTERM)
    if launcher := sys.argv[1:]:
        _launch(launcher)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    from prefect import flow_engine

    flow_engine.capture_sigterm = contextlib.nullcontext  # type: ignore[attr-defined,assignment]  # a stop is ours
    # The import above brings `prefect.engine` with it, as it does soon after the start of `python -m prefect.engine`.
    warnings.filterwarnings("ignore", "'prefect.engine' found in sys.modules", RuntimeWarning)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    return 0


def _launch(launcher: list[str]) -> NoReturn:
    """Become the launcher, which dies with the keeper too. The engine that it starts has another parent than us."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    variables = {name: value for name, value in os.environ.items() if name != PARENT_VARIABLE}
    os.execvpe(launcher[0], launcher, variables)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Become a process that says so, as anything may be half imported here. A flow has a handler of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")  # a worker that stops removes the folder of the run, without which some libraries cannot be loaded
    os.execve(sys.executable, COMMAND, child_variables({KEPT_VARIABLE: _STOPPED}))


def _report(end: str, code: int) -> int:
    """Report a run's end to the server; returns 0, or the code if the server does not answer."""
    import httpx
    import psutil

    from flows.early_end import num_attempts
    from flows.ends import report_end

    message = f"{end}; what was finished is saved"
    began = datetime.datetime.fromtimestamp(psutil.Process().create_time(), datetime.UTC)
    try:
        report_end(UUID(os.environ["PREFECT__FLOW_RUN_ID"]), message, num_attempts(), since=began)
    except httpx.HTTPError as error:
        logging.getLogger("selftrain.flows").error("%s, and the server does not answer: %s", message, error)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
