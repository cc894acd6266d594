"""Displays that break: closed pipes, closed descriptors, full disks (/dev/full is a real one)."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import pytest
from support.command import SELFTRAIN, environment
from support.parents import script

from pipeline.errors import UserError
from pipeline.stages import launch
from pipeline.stages.launch import run_child
from pipeline.stages.messages import MessageFile

pytestmark = pytest.mark.process

FULL = "error: what is printed could not be written (No space left on device); free space, or send it elsewhere\n"


def shell(redirected: str, *arguments: str) -> tuple[int, str]:
    """The command in a shell, with `redirected` after it; returns its exit code and what it said on stderr."""
    line = f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, "bash", *SELFTRAIN, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirected", "outcome"),
    [("> /dev/full", (2, FULL)), ("| true", (0, "")), (">&- 2>&-", (0, ""))],
)
def test_a_broken_display_is_told_or_changes_nothing(redirected: str, outcome: tuple[int, str]) -> None:
    assert shell(redirected, "--help") == outcome


@pytest.mark.parametrize("redirected", ["> /dev/full 2>&1", "2>&1 | true"])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(redirected: str) -> None:
    assert shell(redirected, "run", "nowhere.yaml") == (2, "")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = """
        from pipeline.stages.streams import keep_streams
        keep_streams()
        print("display")
        with open("data", "w") as file:
            os.write(1, b"of a library")
            file.write("data")
    """
    subprocess.run(["bash", "-c", '"$@" >&- 2>&-', "bash", *script(tmp_path, code)], env=environment(), check=True)
    assert (tmp_path / "data").read_text() == "data"


def test_a_stage_whose_log_cannot_be_written_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "open_to_append", lambda _: open("/dev/full", "ab", buffering=0))  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot write .*output\.log: No space left on device; free space"):
        run_child(script(tmp_path, "pass"), tmp_path, title="train")


def test_a_log_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    """A run folder that somebody else made could have us write into a file of ours."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "output.log").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"cannot write .*output\.log: Too many levels of symbolic links"):
        run_child(script(tmp_path, "pass"), tmp_path, title="train")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_log_that_cannot_be_written_ends_no_stage(tmp_path: Path) -> None:
    code = """
        import logging, pathlib, sys, warnings
        from pipeline.stages.child import guarded
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1), os.dup2(full, 2)
        def stage():
            for step in range(10000):
                print("step", step)
            warnings.warn("of a library")
            logging.getLogger("timm").warning("of another")
            pathlib.Path("trained").touch()
            return 0
        sys.exit(guarded(stage, pathlib.Path(".")))
    """
    run_child(script(tmp_path, code), tmp_path, title="train")
    assert (tmp_path / "trained").exists()


def test_a_message_that_cannot_be_written_ends_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.files.open_to_append", lambda _: open("/dev/full", "ab", buffering=0))  # noqa: SIM115
    log = logging.Logger("of a stage")
    log.addHandler(MessageFile(tmp_path / "messages.jsonl"))
    log.info("step 1")
    assert "No space left on device" in capsys.readouterr().err
