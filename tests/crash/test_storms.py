"""Storms of SIGTERM and SIGINT, every few milliseconds until the process has ended: exit code 75, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import fake_run
from support.command import environment, finish, type_command
from support.parents import running, script
from support.server import prefect_server
from support.storms import storm
from support.waiting import FOREVER_S, wait_for

from pipeline.errors import GO_ON
from pipeline.stages import interrupt

pytestmark = pytest.mark.process


def check_storm(folder: Path, seed: int, after: str | None, **variables: str) -> None:
    """A storm over `selftrain run`, from its start or from when a file is there."""
    (folder / "birds.yaml").write_text("seed: 1\n")
    command = (sys.executable, fake_run.__file__, str(FOREVER_S))
    process = type_command("run", "birds.yaml", cwd=folder, command=command, **variables)
    if after is not None:
        wait_for((folder / "runs/birds" / after).exists)
    storm(process, seed)
    code, out, err = finish(process)
    assert code == 75, err
    assert "Traceback" not in out + err
    assert "saved" in err.splitlines()[-1]
    assert "Type the same command to go on." in err
    wait_for(lambda: not running(folder))


@pytest.mark.parametrize(("seed", "after"), [(0, None), (1, "label-0/began")])
def test_a_storm_ends_a_run_with_75(tmp_path: Path, seed: int, after: str | None) -> None:
    check_storm(tmp_path, seed, after)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as variables:
        yield variables


@pytest.mark.slow
@pytest.mark.parametrize("after", [None, "run.lock", "label-0/began"])
@pytest.mark.parametrize("seed", range(4))
def test_storms_under_prefect_end_a_run_with_75(
    tmp_path: Path, server: dict[str, str], seed: int, after: str | None
) -> None:
    check_storm(tmp_path, seed, after, **server)


def test_a_storm_over_a_child_that_has_nothing_to_save_yet_ends_it_with_75(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.json")  # it waits there for somebody to write
    command = (sys.executable, "-m", "pipeline.stages.child")
    process = type_command(tmp_path / "job.json", cwd=tmp_path, command=command)
    storm(process, seed=2)
    assert finish(process) == (75, "", "")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("Held(); time.sleep(60)", 75),  # Python raises nothing in a destructor
        ("interrupt.end(); held = Held()", 0),  # it goes when the interpreter does
        ("atexit.register(stop); interrupt.end()", 0),
        ("stop()", 75),
    ],
)
def test_a_signal_at_an_odd_place_leaves_no_traceback(tmp_path: Path, code: str, exit_code: int) -> None:
    head = """
        import atexit, signal, sys, time
        from pipeline.errors import Interrupted
        from pipeline.stages import interrupt

        def stop():
            for number in interrupt.SIGNALS:
                os.kill(os.getpid(), number)

        class Held:
            def __del__(self, stop=stop):
                stop()

        interrupt.listen()
        try:
    """
    body = f"            {code}\n        except Interrupted:\n            sys.exit(75)\n"
    done = subprocess.run(script(tmp_path, head + body), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_hangs_after_its_interruption_ends_with_the_next_signal(tmp_path: Path) -> None:
    code = f"""
        import pathlib, signal, time
        from pipeline.errors import Interrupted
        from pipeline.stages import interrupt
        interrupt.PATIENCE_S = 0.0
        interrupt.listen()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep({FOREVER_S})
    """
    done = subprocess.run(script(tmp_path, code), env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, f"{interrupt.MESSAGE}. {GO_ON}\n")
