"""Processes that never outlive their owner: a child knows its parent, and the kernel ends it with the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "SELFTRAIN_PARENT"
LOCK_VARIABLE = "SELFTRAIN_LOCK_FD"
_PR_SET_PDEATHSIG = 1


def die_with_parent(signum: signal.Signals) -> None:
    """Have the kernel send `signum` to this process when its parent ends, however it ends (Linux)."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and os.getppid() != int(parent):  # the parent ended before the call
        os.kill(os.getpid(), signum)
