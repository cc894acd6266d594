"""What becomes of a stage's process when somebody stops or kills it or its parent, held by real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from support.command import environment
from support.parents import FAILS_ON_SIGTERM, IGNORES_SIGTERM, SAVES_ON_SIGTERM, parent, running, script
from support.waiting import FOREVER_S, LIMIT_S, wait_for

from pipeline.errors import Interrupted, UserError
from pipeline.stages.launch import run_child
from pipeline.stages.progress import Progress

pytestmark = pytest.mark.process


def test_sigterm_to_the_parent_lets_the_child_save_and_exits_75(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_ON_SIGTERM)
    wait_for((tmp_path / "ready").exists)
    process.terminate()
    assert process.wait(LIMIT_S) == 75
    assert (tmp_path / "saved").exists()
    assert running(tmp_path) == []


def test_ctrl_c_in_the_terminal_lets_the_child_save_and_exits_75(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_ON_SIGTERM)
    wait_for((tmp_path / "ready").exists)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(LIMIT_S) == 75
    assert (tmp_path / "saved").exists()
    assert running(tmp_path) == []


def test_sigkill_of_the_parent_ends_the_child(tmp_path: Path) -> None:
    code = f"""
        import pathlib, signal, time
        from pipeline.stages.owner import die_with_parent
        die_with_parent(signal.SIGKILL)
        pathlib.Path("ready").touch()
        time.sleep({FOREVER_S})
    """
    process = parent(tmp_path, code)
    wait_for((tmp_path / "ready").exists)
    process.kill()
    process.wait()
    wait_for(lambda: not running(tmp_path))


def test_a_parent_killed_before_the_child_began_ends_the_child(tmp_path: Path) -> None:
    code = """
import signal
from pipeline.stages.owner import die_with_parent
die_with_parent(signal.SIGTERM)
print("alive")
"""
    of_another = environment(SELFTRAIN_PARENT="1")
    result = subprocess.run([sys.executable, "-c", code], env=of_another, capture_output=True, check=False)
    assert result.returncode == -signal.SIGTERM
    assert result.stdout == b""


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_with_its_descendants(tmp_path: Path) -> None:
    process = parent(tmp_path, IGNORES_SIGTERM, grace_s=1.0)
    wait_for((tmp_path / "ready").exists)
    began = time.monotonic()
    process.terminate()
    assert process.wait(LIMIT_S) == 75
    assert time.monotonic() - began >= 1.0
    assert running(tmp_path) == []
    assert not psutil.pid_exists(int((tmp_path / "grandchild").read_text()))


def test_a_stop_that_comes_too_late_for_its_stage_stops_before_the_next(tmp_path: Path) -> None:
    code = SAVES_ON_SIGTERM.replace("sys.exit(75)", "sys.exit(0)")
    with pytest.raises(Interrupted, match=r"^stage is finished; stopped before the next stage$"):
        run_child(script(tmp_path, code), tmp_path, title="stage", stop=(tmp_path / "ready").exists, grace_s=LIMIT_S)


def test_what_a_stopped_child_could_not_save_is_told(tmp_path: Path) -> None:
    code = "open('error.json', 'w').write('{\"message\": \"the disk is full\"}'); os._exit(75)"
    with pytest.raises(UserError, match="the disk is full"):
        run_child(script(tmp_path, code), tmp_path, title="stage")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (SAVES_ON_SIGTERM, r"^stage was stopped and is saved$"),
        (
            IGNORES_SIGTERM,
            r"stopped without saving \(killed 1 s after it was asked to stop\); the same command goes on from what",
        ),
        (FAILS_ON_SIGTERM, r"stopped without saving \(exit code 1\); the same command goes on from what is saved"),
    ],
)
def test_the_message_of_a_stop_tells_whether_the_stage_is_saved(tmp_path: Path, code: str, message: str) -> None:
    grace = 1.0 if code is IGNORES_SIGTERM else LIMIT_S
    with pytest.raises(Interrupted, match=message):
        run_child(script(tmp_path, code), tmp_path, title="stage", stop=(tmp_path / "ready").exists, grace_s=grace)
    assert running(tmp_path) == []


def test_stop_is_polled_and_works_in_a_thread(tmp_path: Path) -> None:
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            command = script(tmp_path, SAVES_ON_SIGTERM)
            run_child(command, tmp_path, title="stage", stop=(tmp_path / "ready").exists, grace_s=LIMIT_S)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(LIMIT_S)
    assert [type(error) for error in outcome] == [Interrupted]
    assert (tmp_path / "saved").exists()


def test_an_error_in_the_progress_display_leaves_no_child(tmp_path: Path) -> None:
    code = f"""
        import pathlib, time
        from pipeline.stages.progress import report
        report(pathlib.Path("."), 1, 2, "steps")
        time.sleep({FOREVER_S})
    """

    def broken(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_child(script(tmp_path, code), tmp_path, title="stage", on_progress=broken)
    assert running(tmp_path) == []
