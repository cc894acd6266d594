"""Real parents and children for tests of the launcher."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil

from support.command import environment
from support.waiting import FOREVER_S, LIMIT_S

SAVES_ON_SIGTERM = f"""
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(75)))
    pathlib.Path("ready").touch()
    time.sleep({FOREVER_S})
"""
FAILS_ON_SIGTERM = f"""
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pathlib.Path("ready").touch()
    time.sleep({FOREVER_S})
"""
IGNORES_SIGTERM = f"""
    import pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = [sys.executable, "-c", "import time; time.sleep({FOREVER_S})"]
    grandchild = subprocess.Popen(sleep, start_new_session=True)
    pathlib.Path("grandchild").write_text(str(grandchild.pid))
    pathlib.Path("ready").touch()
    time.sleep({FOREVER_S})
"""


def script(folder: Path, code: str, name: str = "stage.py") -> list[str]:
    """A command that runs `code` in `folder`."""
    (folder / name).write_text(f"import os; os.chdir({str(folder)!r})\n" + textwrap.dedent(code))
    return [sys.executable, str(folder / name)]


def parent(folder: Path, child_code: str, *, grace_s: float = LIMIT_S) -> subprocess.Popen[bytes]:
    """A real parent process that runs a real child, and exits 75 when it is interrupted."""
    command = script(folder, child_code)
    code = f"""
        from pathlib import Path
        from pipeline.errors import Interrupted
        from pipeline.stages.launch import run_child
        try:
            run_child({command!r}, Path({str(folder)!r}), title="stage", grace_s={grace_s})
        except Interrupted:
            raise SystemExit(75)
    """
    return subprocess.Popen(script(folder, code, "parent.py"), env=environment(), start_new_session=True)


def running(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in part for part in process.cmdline()):
                found.append(process.pid)
    return found
