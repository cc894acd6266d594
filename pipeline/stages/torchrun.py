"""Several ranks of one stage: this process becomes torchrun's agent and starts those of this machine.

Agents of several machines know nothing of each other: nodes.py brings machines together. Torch's own rendezvous of
agents unpickles what anybody sends to a socket without a password, and decides by itself where rank 0 is, which writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from pipeline.stages.interrupt import ignore
from pipeline.stages.owner import LOCK_VARIABLE, PARENT_VARIABLE, die_with_parent
from pipeline.stages.ranks import NODE_VARIABLE, STORE_VARIABLE


def run_ranks(num_ranks: int, arguments: Sequence[str]) -> int:
    """Run `python ARGUMENTS` as `num_ranks` processes of this machine, as torchrun's agent; returns the exit code.

    A SIGTERM is passed on to the ranks, and they are awaited. If a rank fails, the other ranks are ended.
    """
    die_with_parent(signal.SIGTERM)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    from pipeline.stages.interface import interface

    api._terminate_process_handler = _stop_once
    lock_fd = os.environ.get(LOCK_VARIABLE)
    if lock_fd is not None:  # ranks hold the run lock while they live; torchrun has no option for it
        keep_lock = partial(subprocess.Popen, pass_fds=(int(lock_fd),))
        subprocess_handler.Popen = keep_lock  # type: ignore[assignment,attr-defined]
    # Agent and ranks find each other by files in a private folder. Over a socket of torch's, which has no password and
    # listens on every interface, whoever reaches this machine could have the agent unpickle what they sent.
    with tempfile.TemporaryDirectory(prefix="selftrain-ranks-") as folder:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", f"{folder}/agent"]
        options = ["--nnodes", "1", "--nproc-per-node", str(num_ranks), "--max-restarts", "0"]
        if NODE_VARIABLE in os.environ:  # ranks meet those of other machines, where the launcher says
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface().name)
        else:
            os.environ |= {STORE_VARIABLE: f"{folder}/ranks", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the agent would serve one for ranks, all the same
        return _run(partial(torchrun.main, [*rendezvous, *options, "--no-python", sys.executable, *arguments]))


def _stop_once(signum: int, frame: object) -> NoReturn:
    """Have the agent send SIGTERM to its ranks. A second signal would end its wait for ranks that are saving."""
    from torch.distributed.elastic.multiprocessing import SignalException

    ignore()
    raise SignalException(f"stopped by signal {signum}", signal.SIGTERM)


def _run(torchrun: Callable[[], None]) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        try:
            torchrun()
        finally:
            ignore()
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        known = [code for code in (EXIT_USER_ERROR, EXIT_INTERRUPTED) if code in codes]
        return known[0] if known else EXIT_FAILURE
    return EXIT_OK
