"""Several ranks of one stage: this process becomes torchrun's agent and starts them."""

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
    """Run `python ARGUMENTS` as `num_ranks` processes, as torchrun's agent; returns the exit code.

    A SIGTERM is passed on to the ranks, and they are awaited. If a rank fails, the other ranks are ended.
    """
    die_with_parent(signal.SIGTERM)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    # A second signal would end the agent's wait for ranks that are saving, so the agent handles SIGTERM only.
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM")
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    lock_fd = os.environ.get(LOCK_VARIABLE)
    if lock_fd is not None:  # ranks hold the run lock while they live; torchrun has no option for it
        keep_lock = functools.partial(subprocess.Popen, pass_fds=(int(lock_fd),))
        subprocess_handler.Popen = keep_lock  # type: ignore[assignment,attr-defined]
    options = ["--standalone", "--nproc-per-node", str(num_ranks), "--max-restarts", "0"]
    try:
        # With `--no-python` the ranks are started by exactly our command line.
        torchrun.main([*options, "--no-python", sys.executable, *arguments])
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        known = [code for code in (EXIT_USER_ERROR, EXIT_INTERRUPTED) if code in codes]
        return known[0] if known else EXIT_FAILURE
    return EXIT_OK
