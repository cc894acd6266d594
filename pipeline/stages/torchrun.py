"""Several ranks of one stage: this process as torchrun's agent."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from pipeline.stages.owner import LOCK_VARIABLE, PARENT_VARIABLE, die_with_parent


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
