"""Real parents and children for tests of the launcher."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.stages import launch

ROOT = Path(launch.__file__).parents[2]

SAVES_ON_SIGTERM = """
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(75)))
    pathlib.Path("ready").touch()
    time.sleep(60)
"""
FAILS_ON_SIGTERM = """
    import pathlib, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pathlib.Path("ready").touch()
    time.sleep(60)
"""
IGNORES_SIGTERM = """
    import pathlib, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    pathlib.Path("grandchild").write_text(str(grandchild.pid))
    pathlib.Path("ready").touch()
    time.sleep(60)
"""


def script(folder: Path, code: str, name: str = "stage.py") -> list[str]:
    """A command that runs `code` in `folder`."""
    (folder / name).write_text(f"import os; os.chdir({str(folder)!r})\n" + textwrap.dedent(code))
    return [sys.executable, str(folder / name)]


def parent(folder: Path, child_code: str, *, grace_s: float = 10.0) -> subprocess.Popen[bytes]:
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(script(folder, code, "parent.py"), env=environment, start_new_session=True)


def wait_for(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def running(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in part for part in process.cmdline()):
                found.append(process.pid)
    return found
