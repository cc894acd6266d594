"""The command of a deployment's runs, `selftrain-engine` in the place of `python -m prefect.engine`: it keeps the
engine, which runs the flow.

A worker that stops kills the process that it started at once, so that nothing could be saved and nobody would say what
became of the run. Here that process is the keeper. When it is killed, the kernel sends the engine a SIGTERM, and the
engine saves and puts the run back into the queue, also before its flow has begun. When the engine itself is killed,
such as for want of memory, the keeper does that. The engine's output is a display: it may break with the worker that
read it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import signal
import subprocess
import sys
import warnings
from types import FrameType
from uuid import UUID

from pipeline.stages.environment import child_variables
from pipeline.stages.owner import die_with_parent
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
        return _report("the engine was stopped", signal.SIGTERM) if kept == _STOPPED else _be_the_engine()

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        engine.terminate()

    # Signals wait until there is an engine, which lets them in when it can say what became of the run. In a session of
    # its own none reaches it but through the keeper.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    for number in STOPS:
        signal.signal(number, pass_on)
    engine = subprocess.Popen(COMMAND, env=child_variables({KEPT_VARIABLE: "1"}), start_new_session=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    code = engine.wait()
    if code >= 0:
        return code
    by = signal.Signals(-code)
    return _report(f"the engine was killed by {by.name}", by)


def _be_the_engine() -> int:
    signal.signal(signal.SIGTERM, _stop)
    die_with_parent(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    from prefect import flow_engine

    flow_engine.capture_sigterm = contextlib.nullcontext  # type: ignore[attr-defined,assignment]  # a stop is ours
    # The import above brings `prefect.engine` with it, as it does soon after the start of `python -m prefect.engine`.
    warnings.filterwarnings("ignore", "'prefect.engine' found in sys.modules", RuntimeWarning)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Become a process that says so, as anything may be half imported here. A flow has a handler of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")  # a worker that stops removes the folder of the run, without which some libraries cannot be loaded
    os.execve(sys.executable, COMMAND, child_variables({KEPT_VARIABLE: _STOPPED}))


def _report(end: str, by: signal.Signals) -> int:
    import httpx

    from flows.early_end import num_attempts
    from flows.ends import report_end

    message = f"{end}; what was finished is saved"
    try:
        report_end(UUID(os.environ["PREFECT__FLOW_RUN_ID"]), message, num_attempts())
    except httpx.HTTPError as error:
        logging.getLogger("selftrain.flows").error("%s, and the server does not answer: %s", message, error)
        return 128 + by
    return 0


if __name__ == "__main__":
    sys.exit(main())
