"""The command of a deployment's runs, `selftrain-engine` in the place of `python -m prefect.engine`: it keeps the
engine, which runs the flow.

A worker that stops kills the process that it started at once, so that nothing could be saved and nobody would say what
became of the run. Here that process is the keeper. When it is killed, the kernel sends the engine a SIGTERM, and the
engine saves and puts the run back into the queue. When the engine itself is killed, such as for want of memory, the
keeper does that. The engine's output is a display: it may break with the worker that read it.
"""

from __future__ import annotations

import logging
import os
import runpy
import signal
import subprocess
import sys
from types import FrameType
from uuid import UUID

from pipeline.stages.environment import child_variables
from pipeline.stages.owner import die_with_parent
from pipeline.stages.streams import keep_streams

KEPT_VARIABLE = "SELFTRAIN_KEPT"
"""Tells the engine that it is kept."""


def main() -> int:
    """Keep an engine; returns the exit code for the worker, which is 0 if the run has its state."""
    keep_streams()
    if KEPT_VARIABLE in os.environ:
        return _be_the_engine()
    command = [sys.executable, "-m", "flows.engine"]
    # In a session of its own no signal reaches it but through the keeper.
    engine = subprocess.Popen(command, env=child_variables({KEPT_VARIABLE: "1"}), start_new_session=True)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        engine.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = engine.wait()
    return code if code >= 0 else _was_killed(signal.Signals(-code))


def _be_the_engine() -> int:
    die_with_parent(signal.SIGTERM)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    return 0


def _was_killed(by: signal.Signals) -> int:
    import httpx

    from flows.early_end import num_attempts
    from flows.ends import report_end

    message = f"the engine was killed by {by.name}; what was finished is saved"
    try:
        report_end(UUID(os.environ["PREFECT__FLOW_RUN_ID"]), message, num_attempts())
    except httpx.HTTPError as error:
        logging.getLogger("selftrain.flows").error("%s, and the server does not answer: %s", message, error)
        return 128 + by
    return 0


if __name__ == "__main__":
    sys.exit(main())
