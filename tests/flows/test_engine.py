"""The keeper of an engine, with real signals and an engine of the test's own in the place of Prefect's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from support.command import ROOT, environment
from support.waiting import FOREVER_S, LIMIT_S, wait_for

pytestmark = pytest.mark.process

SAVES = f"""
    import os, signal, sys, time
    from pathlib import Path

    def save(*_: object) -> None:
        print("saving", flush=True)
        Path("saved").touch()
        os._exit(7)

    signal.signal(signal.SIGTERM, save)
    Path("engine.tmp").write_text(str(os.getpid()))
    Path("engine.tmp").rename("engine")
    time.sleep({FOREVER_S})
"""


def keep(folder: Path, engine: str, *launcher: str) -> subprocess.Popen[bytes]:
    """`python -m flows.engine LAUNCHER ...` in a folder, with this code as `prefect.engine`; its output goes into a
    pipe."""
    (folder / "prefect").mkdir()
    for name in ("__init__", "flow_engine"):
        (folder / "prefect" / f"{name}.py").touch()
    (folder / "prefect" / "engine.py").write_text(textwrap.dedent(engine))
    variables = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    command = [sys.executable, "-m", "flows.engine", *launcher]
    return subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def engine_of(folder: Path) -> psutil.Process:
    wait_for((folder / "engine").exists)
    return psutil.Process(int((folder / "engine").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_engine_and_its_exit_code_the_worker(tmp_path: Path, number: signal.Signals) -> None:
    with keep(tmp_path, SAVES) as keeper:
        engine_of(tmp_path)
        keeper.send_signal(number)
        assert keeper.wait(LIMIT_S) == 7
    assert (tmp_path / "saved").exists()


def test_the_engine_of_a_killed_keeper_saves_and_ends(tmp_path: Path) -> None:
    """As when a worker stops. Nobody reads its output by then."""
    keeper = keep(tmp_path, SAVES)
    engine = engine_of(tmp_path)
    assert keeper.stdout is not None
    keeper.stdout.close()
    keeper.kill()
    keeper.wait()
    psutil.wait_procs([engine], timeout=LIMIT_S)
    assert not engine.is_running()
    assert (tmp_path / "saved").exists()


def test_a_launcher_starts_the_engine_and_dies_with_the_keeper(tmp_path: Path) -> None:
    """Such as srun: the engine is its child, and has no keeper of its own."""
    launch = f"echo $$ > launcher; {sys.executable} -m flows.engine & wait"
    keeper = keep(tmp_path, SAVES, "sh", "-c", launch)
    engine = engine_of(tmp_path)
    launcher = psutil.Process(int((tmp_path / "launcher").read_text()))
    assert engine.ppid() == launcher.pid
    assert launcher.ppid() == keeper.pid
    assert keeper.stdout is not None
    keeper.stdout.close()
    keeper.kill()
    keeper.wait()
    psutil.wait_procs([launcher, engine], timeout=LIMIT_S)
    assert not launcher.is_running()
    assert not engine.is_running()
    assert (tmp_path / "saved").exists()


def test_a_launcher_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with keep(tmp_path, SAVES, "srun-which-is-not-here", "--nodes=2") as keeper:
        out, _ = keeper.communicate(timeout=LIMIT_S)
    assert keeper.returncode == 1
    assert b"srun-which-is-not-here is no command here; mend the job variable `command` of the deployment" in out


def test_the_engine_outlives_who_read_its_output(tmp_path: Path) -> None:
    code = """
        import logging, sys, time
        from pathlib import Path
        import rich.console

        console = rich.console.Console(file=sys.stderr)  # as Prefect's handler of logs has it
        Path("ready").touch()
        while not Path("closed").exists():
            time.sleep(0.01)
        for _ in range(3):
            print("more", flush=True)
            console.print("more")  # rich exits at a broken pipe
        Path("done").touch()
    """
    keeper = keep(tmp_path, code)
    wait_for((tmp_path / "ready").exists)
    assert keeper.stdout is not None
    keeper.stdout.close()
    (tmp_path / "closed").touch()
    assert keeper.wait(LIMIT_S) == 0
    assert (tmp_path / "done").exists()
