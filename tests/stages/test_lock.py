"""The lock of a run folder, and how it is found."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.command import environment
from support.waiting import FOREVER_S, LIMIT_S

from pipeline.errors import UserError
from pipeline.stages.lock import FolderInUse, find_run, read_lock, run_lock


def test_the_run_of_a_path_is_found_upwards(tmp_path: Path) -> None:
    run, inside = tmp_path / "run", tmp_path / "run" / "rounds" / "0" / "train-1"
    inside.mkdir(parents=True)
    (inside / "run.lock").write_text("")  # of a stage that was begun by hand
    assert find_run(inside) is None
    for name in ("run.lock", "config.yaml"):
        (run / name).write_text("")
    assert find_run(run) == find_run(inside) == find_run(inside / "model.safetensors") == run
    assert find_run(tmp_path) is None


@pytest.mark.process
def test_the_lock_names_its_owner_and_is_gone_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from pipeline.stages.lock import run_lock\n"
        f"with run_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep({FOREVER_S})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment(), stdout=-1) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(UserError, match=f"in use by process {owner.pid};"), run_lock(tmp_path, wait_s=0.2):
            pass
        owner.kill()
        with run_lock(tmp_path, wait_s=LIMIT_S):
            assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder or fix permissions"), run_lock(tmp_path / "file" / "x"):
        pass


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"file system that has no locks .*on another disk"), run_lock(tmp_path):
        pass


def test_a_file_of_the_user_that_has_the_name_of_the_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("flask==3.0  # mine\n")
    with pytest.raises(UserError, match=r"run\.lock is no lock of selftrain; rename it"), run_lock(tmp_path):
        pass
    assert (tmp_path / "run.lock").read_text() == "flask==3.0  # mine\n"


def test_whoever_reads_holds_off_a_pack_and_not_another_reader(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(FolderInUse, match=f"in use by process {os.getpid()};"),
        read_lock(tmp_path, wait_s=0),
    ):
        pass
    with (
        read_lock(tmp_path, wait_s=0),
        read_lock(tmp_path, wait_s=0),
        pytest.raises(FolderInUse, match="is read by a run; wait for it"),
        run_lock(tmp_path, wait_s=0),
    ):
        pass
    with run_lock(tmp_path, wait_s=0):
        pass


def test_a_folder_without_a_lock_is_read_and_nothing_is_made_there(tmp_path: Path) -> None:
    with read_lock(tmp_path, wait_s=0):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lock", [run_lock, read_lock])
def test_who_waits_for_a_folder_says_so_once(
    lock: Callable[..., AbstractContextManager[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pipeline.stages.lock.TELL_S", 0.0)
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    with run_lock(tmp_path), pytest.raises(FolderInUse), lock(tmp_path, wait_s=0.35):
        pass
    assert caplog.messages == [f"{tmp_path} is in use by process {os.getpid()}; waiting up to 0.35 s for it"]
