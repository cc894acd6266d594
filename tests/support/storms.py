"""Storms of signals over a process."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
from pathlib import Path

from support.waiting import wait_for


def listens(pid: int) -> bool:
    """Whether a process handles SIGTERM already (Linux). Before, Python itself is starting, and dies of it."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(status[status.index("SigCgt:") + 1], 16) >> (signal.SIGTERM - 1) & 1)


def storm(process: subprocess.Popen[str], seed: int) -> None:
    """Send SIGTERM and SIGINT every few milliseconds, from when the process listens until it has ended."""
    draw = random.Random(seed)
    wait_for(lambda: process.poll() is not None or listens(process.pid))
    while process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(draw.choice((signal.SIGTERM, signal.SIGINT)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, 0.01))
