"""`make team` without a server: in which order its processes end, and what its errors say."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import environment
from support.parents import script
from support.waiting import FOREVER_S, wait_for

from flows import team
from pipeline.errors import Interrupted, UserError

pytestmark = pytest.mark.process

WORKER = f"""
    import pathlib, signal, subprocess, sys, time
    run = subprocess.Popen([sys.executable, "run.py"], start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: (run.terminate(), sys.exit(0)))
    time.sleep({FOREVER_S})
"""
RUN = f"""
    import pathlib, psutil, signal, sys, time
    def report(*_):
        time.sleep(0.5)
        server = psutil.Process(int(pathlib.Path("server").read_text()))
        alive = server.is_running() and server.status() != psutil.STATUS_ZOMBIE
        pathlib.Path("reported").write_text(str(alive))
        sys.exit(0)
    signal.signal(signal.SIGTERM, report)
    pathlib.Path("ready").touch()
    time.sleep({FOREVER_S})
"""


def test_the_server_ends_after_the_runs_have_told_it(tmp_path: Path) -> None:
    script(tmp_path, RUN, "run.py")
    server = subprocess.Popen(script(tmp_path, f"import time; time.sleep({FOREVER_S})", "server.py"))
    (tmp_path / "server").write_text(str(server.pid))
    worker = subprocess.Popen(script(tmp_path, WORKER, "worker.py"), env=environment())
    wait_for((tmp_path / "ready").exists)
    team._stop([server, worker])
    assert (tmp_path / "reported").read_text() == "True"
    assert None not in (server.returncode, worker.returncode)


def test_what_it_starts_listens_to_sigint_though_a_shell_in_the_background_does_not() -> None:
    """Prefect's worker makes a SIGINT of a SIGTERM, so it would obey neither, and its runs would be killed unsaved."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    try:
        for prepared, listens in ((None, False), (team._as_a_child, True)):
            said = subprocess.check_output([sys.executable, "-c", code], text=True, preexec_fn=prepared)
            assert said == f"{listens}\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_while_the_server_starts_is_no_fault(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER_S})"]) as server:
        with pytest.raises(Interrupted, match="stopped before the Prefect server had started"):
            team._wait_until_healthy("http://127.0.0.1:9", server, tmp_path, lambda: True)
        server.kill()
    with pytest.raises(UserError, match=r"did not start; see .*server\.log"):
        team._wait_until_healthy("http://127.0.0.1:9", server, tmp_path, lambda: False)


def test_a_server_that_accepts_and_says_nothing_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "ASK_S", 0.05)
    monkeypatch.setattr(team, "HEALTHY_S", 0.2)
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; time.sleep({FOREVER_S})"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        began = time.monotonic()
        with pytest.raises(UserError, match="did not start"):
            team._wait_until_healthy(url, server, tmp_path, lambda: False)
        assert time.monotonic() - began < FOREVER_S
        server.kill()
