"""The child process that runs one stage: `python -m pipeline.child JOB.json`.

It dies with its parent. With more than one training process it becomes torchrun's agent, whose ranks run this same
module and die with the agent. Exit codes are those of `pipeline.errors`; the message of a UserError is left in
`error.json` beside the job.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError

if TYPE_CHECKING:
    from pipeline.jobs import Job

STAGES = {
    "train": "pipeline.train.stage:run_train",
    "meta": "pipeline.train.meta_stage:run_meta",
    "moons": "pipeline.moons.stage:run_moons",
    "label": "pipeline.labels.predict:run_label",
    "select": "pipeline.labels.select:run_select",
    "evaluate": "pipeline.evaluate.stage:run_evaluate",
}
"""Job kind -> the stage function, imported when it is called."""

WARNINGS = "warnings.jsonl"
PARENT_VARIABLE = "SELFTRAIN_PARENT"
LOCK_VARIABLE = "SELFTRAIN_LOCK_FD"
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the job named on the command line; returns the exit code."""
    die_with_parent(signal.SIGKILL)  # before the slow imports
    from pipeline.jobs import LabelJob, MetaJob, TrainJob, read_job

    path = Path(sys.argv[1])
    job = read_job(path)
    if isinstance(job, TrainJob | MetaJob | LabelJob) and job.runtime.processes > 1 and "RANK" not in os.environ:
        return run_ranks(job.runtime.processes, ["-m", "pipeline.child", str(path)])
    return guarded(lambda: stage_function(job.kind)(job), path.parent)


def stage_function(kind: str) -> Callable[[Job], None]:
    """The function that runs a stage of this kind."""
    module, _, name = STAGES[kind].partition(":")
    function: Callable[[Job], None] = getattr(import_module(module), name)
    return function


def guarded(run: Callable[[], None], out: Path) -> int:
    """Call `run` and turn its outcome into an exit code; other exceptions pass through with their traceback."""
    from pipeline.stage import write_json

    if os.environ.get("RANK", "0") == "0":
        logging.getLogger("selftrain").addHandler(_WarningFile(out / WARNINGS))
    try:
        run()
    except UserError as error:
        # On a full disk neither can be written; the exit code still says what it was.
        with contextlib.suppress(OSError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(UserError):
            write_json(out / "error.json", {"message": str(error)})
        return EXIT_USER_ERROR
    except Interrupted as request:
        print(f"interrupted: {request}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


class _WarningFile(logging.Handler):
    """Warnings as lines of JSON, for the parent to show."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        from pipeline.stage import append_json

        append_json(self.path, {"message": record.getMessage()})


def die_with_parent(signum: signal.Signals) -> None:
    """Have the kernel send `signum` to this process when its parent ends, however it ends (Linux)."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and os.getppid() != int(parent):  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def run_ranks(num_ranks: int, arguments: Sequence[str]) -> int:
    """Be torchrun's agent: run `python ARGUMENTS` as `num_ranks` processes; returns the exit code.

    A SIGTERM is passed on to the ranks, which are awaited. A rank's failure ends the other ranks.
    """
    die_with_parent(signal.SIGTERM)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    # A second signal would break off the agent's wait for ranks that are saving.
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    lock_fd = os.environ.get(LOCK_VARIABLE)
    if lock_fd is not None:  # torchrun has no option for it: ranks hold the run lock as long as they live
        keep_lock = functools.partial(subprocess.Popen, pass_fds=(int(lock_fd),))
        subprocess_handler.Popen = keep_lock  # type: ignore[assignment,attr-defined]
    options = ["--standalone", "--nproc-per-node", str(num_ranks), "--max-restarts", "0"]
    try:
        # `--no-python` lets the ranks be started by exactly our command line.
        torchrun.main([*options, "--no-python", sys.executable, *arguments])
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        known = [code for code in (EXIT_USER_ERROR, EXIT_INTERRUPTED) if code in codes]
        return known[0] if known else EXIT_FAILURE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
