"""A script that dies in the middle of its file operations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.waiting import LIMIT_S

AUDIT = """
import os, signal, sys
from pathlib import Path
kill_after, events = int(sys.argv[3]), 0
def audit(event, arguments):
    # Every open, rename, mkdir and rmdir is a moment to die in.
    global events
    if event in {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"} and sys.argv[2] in str(arguments[0]):
        events += 1
        if events == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
"""


def mortal(imports: str, call: str) -> str:
    """The script of a call, which has `source` and `out`. It prints how many file operations there were below `out`."""
    return f"{imports}\n{AUDIT}\nsource, out = Path(sys.argv[1]), Path(sys.argv[2])\n{call}\nprint(events)"


def run_mortal(code: str, source: Path, out: Path, kill_after: int) -> subprocess.CompletedProcess[str]:
    """Run such a script, which is killed at a file operation; with -1 at none."""
    arguments = [sys.executable, "-c", code, str(source), str(out), str(kill_after)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=LIMIT_S)
