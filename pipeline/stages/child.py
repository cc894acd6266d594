"""The child process that runs one stage: `python -m pipeline.stages.child JOB.json`.

It dies with its parent. If the stage has more than one process, it becomes torchrun's agent, whose ranks run this same
module and die with the agent. Exit codes are those of `pipeline.errors`. The message of a UserError is left in
`error.json` beside the job.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError, shown
from pipeline.stages.interrupt import ignore, leave_at_once
from pipeline.stages.messages import MESSAGES, MessageFile
from pipeline.stages.owner import die_with_parent
from pipeline.stages.ranks import count_over_machines, env_rank
from pipeline.stages.streams import keep_streams


def main() -> int:
    """Run the job that the command line names; returns the exit code."""
    leave_at_once()  # before the slow imports
    die_with_parent(signal.SIGKILL)
    count_over_machines()
    path = Path(sys.argv[1])
    return guarded(lambda: _run(path), path.parent)


def _run(path: Path) -> int:
    from pipeline.stages.kinds import kind_of, read_job
    from pipeline.stages.plugins import load_plugins
    from pipeline.stages.preamble import run_stage

    load_plugins()
    job = read_job(path)
    if kind_of(job).ranks and job.runtime.ranks > 1 and "RANK" not in os.environ:
        from pipeline.stages.torchrun import run_ranks

        return run_ranks(job.runtime.processes, ["-m", "pipeline.stages.child", str(path)])
    run_stage(job)
    return EXIT_OK


def guarded(run: Callable[[], int], out: Path) -> int:
    """Call `run` and turn its outcome into an exit code. Other exceptions pass through with their traceback."""
    from pipeline.files import write_json

    keep_streams()  # the log is no reason to end a training
    if env_rank() == 0:
        log = logging.getLogger("selftrain")
        log.setLevel(logging.INFO)
        log.addHandler(MessageFile(out / MESSAGES))
        log.addHandler(logging.StreamHandler(sys.stdout))  # the stage's output.log
    try:
        return run()
    except UserError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        with contextlib.suppress(UserError):  # a full disk: the exit code still says what happened
            write_json(out / "error.json", {"message": str(error)})
        return EXIT_USER_ERROR
    except Interrupted as request:
        print(f"interrupted: {request}", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        ignore()


if __name__ == "__main__":
    sys.exit(main())
