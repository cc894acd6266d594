"""The outcomes of a stage's process, held by real processes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command import ROOT
from support.parents import script

from pipeline.config import Data, Label, Runtime
from pipeline.errors import Interrupted, UserError
from pipeline.stages import launch, messages
from pipeline.stages.jobs import LabelJob
from pipeline.stages.launch import run_child, run_job

pytestmark = pytest.mark.process

# ---------------------------------------------------------------------------------------------------------- outcomes


def test_output_goes_to_the_log_and_success_returns(tmp_path: Path) -> None:
    run_child(script(tmp_path, "print('to stdout'); os.write(2, b'to stderr')"), tmp_path, title="stage")
    log = (tmp_path / "output.log").read_text()
    assert "to stdout" in log
    assert "to stderr" in log


def test_failure_raises_with_the_tail_of_this_attempts_log_only(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="first defect"):
        run_child(script(tmp_path, "raise ArithmeticError('first defect')"), tmp_path, title="stage")
    with pytest.raises(RuntimeError, match=r"exit code 1\)") as failure:
        run_child(script(tmp_path, "raise ArithmeticError('second defect')"), tmp_path, title="stage")
    assert "second defect" in str(failure.value)
    assert "first defect" not in str(failure.value)
    assert "first defect" in (tmp_path / "output.log").read_text()


def test_a_killed_child_is_reported_by_its_signal(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed by SIGKILL; out of memory"):
        run_child(script(tmp_path, "os.kill(os.getpid(), 9)"), tmp_path, title="stage")


def test_user_error_of_the_child_is_raised_with_its_message(tmp_path: Path) -> None:
    code = "open('error.json', 'w').write('{\"message\": \"data.val is empty\"}'); os._exit(2)"
    with pytest.raises(UserError, match=r"^data\.val is empty$"):
        run_child(script(tmp_path, code), tmp_path, title="stage")
    assert not (tmp_path / "error.json").exists()  # a stage folder must not begin with a foreign file


def test_exit_2_without_a_message_is_a_defect_even_beside_a_stale_message(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"message": "of an earlier attempt"}')
    with pytest.raises(RuntimeError, match="exit code 2"):
        run_child(script(tmp_path, "os._exit(2)"), tmp_path, title="stage")


def test_on_a_full_disk_the_exit_code_is_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child can write neither its message nor its log."""
    code = """
        import pathlib, resource, sys
        from pipeline.stages.child import guarded
        from pipeline.errors import UserError
        def stage():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            raise UserError("cannot write labels.arrow")
        sys.exit(guarded(stage, pathlib.Path(".")))
    """
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="is full; free space"):
        run_child(script(tmp_path, textwrap.dedent(code)), tmp_path, title="stage")


def test_a_child_that_stopped_by_itself_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_child(script(tmp_path, "os._exit(75)"), tmp_path, title="stage")


def test_run_job_runs_the_stage_function_of_the_job_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole path through pipeline.stages.child, with a fake stage in its table."""
    out = tmp_path / "label-0"
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from dataclasses import replace
        from pipeline.stages import child, kinds
        kinds.KINDS["label"] = replace(kinds.KINDS["label"], inputs_of="fake_stage:inputs", function="fake_stage:run")
        sys.exit(child.main())
    """
    (tmp_path / "fake_stage.py").write_text(
        textwrap.dedent("""
        import logging, os
        from pipeline.errors import Interrupted, UserError
        from pipeline.stages.fingerprint import StageInputs
        def inputs(job):
            return StageInputs({}, {})
        def run(job, stage):
            assert stage.path == job.out
            (job.out.parent / "threads").write_text(os.environ["OMP_NUM_THREADS"])
            logging.getLogger("selftrain.models").warning("fc.weight stays at random")
            if job.round == 1: raise UserError("label.top_k is wrong")
            if job.round == 2: raise Interrupted("at step 5")
        """)
    )
    monkeypatch.setattr(launch, "CHILD", tuple(script(tmp_path, code)))

    def job(round: int) -> LabelJob:
        runtime = Runtime(threads=3, device="cpu")
        return LabelJob(out=out, round=round, data=Data(), label=Label(), runtime=runtime, teachers=())

    run_job(job(0))
    assert (tmp_path / "threads").read_text() == "3"
    assert "fc.weight stays at random" in caplog.text  # in this process, where people see it
    assert json.loads((out / "job.json").read_text())["kind"] == "label"
    with pytest.raises(UserError, match=r"^label\.top_k is wrong$"):
        run_job(job(1))
    with pytest.raises(Interrupted):
        run_job(job(2))


def test_what_a_child_says_is_logged_once_and_while_it_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = """
        import logging, pathlib, sys, time
        from pipeline.stages.child import guarded
        def stage():
            logging.getLogger("selftrain.train").info("step 1")
            while not pathlib.Path("heard").exists():
                time.sleep(0.05)
            logging.getLogger("selftrain.train").warning("the loss jumps")
            return 0
        sys.exit(guarded(stage, pathlib.Path(".")))
    """

    def hear(record: logging.LogRecord) -> bool:
        (tmp_path / "heard").touch()
        return True

    with caplog.at_level(logging.INFO, "selftrain"):
        messages.log.addFilter(hear)
        try:
            run_child(script(tmp_path, code), tmp_path, title="stage")
        finally:
            messages.log.removeFilter(hear)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [("INFO", "step 1"), ("WARNING", "the loss jumps")]


def test_files_of_the_user_are_refused_before_any_is_touched(tmp_path: Path) -> None:
    for name in ("job.json", "progress.json", "error.json"):
        (tmp_path / name).write_text('{"mine": true}')
    job = LabelJob(out=tmp_path, round=0, data=Data(), label=Label(), runtime=Runtime(), teachers=())
    with pytest.raises(UserError, match="is not empty and not a label stage"):
        run_job(job)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("job.json", "progress.json", "error.json"), '{"mine": true}'
    )


def test_what_killed_writes_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other hidden file, which is the user's."""
    left, mine = tmp_path / ".selftrain-0123456789abcdef.tmp", tmp_path / ".notes.tmp"
    for path in (left, mine):
        path.write_bytes(b"half")
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", ""))
    run_job(LabelJob(out=tmp_path, round=0, data=Data(), label=Label(), runtime=Runtime(), teachers=()))
    assert (left.exists(), mine.exists()) == (False, True)


def test_a_folder_named_pipeline_where_the_user_works_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise AssertionError('the wrong package')")
    monkeypatch.chdir(tmp_path)
    code = "import pipeline.errors, sys; assert str(pipeline.__file__).startswith(sys.argv[1])"
    run_child([sys.executable, "-c", code, str(ROOT)], tmp_path, title="stage")


def test_handlers_of_the_parent_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run_child(script(tmp_path, "pass"), tmp_path, title="stage")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_run_lock_is_held_by_the_child(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    code = """
        import fcntl, os
        held = os.fstat(int(os.environ["SELFTRAIN_LOCK_FD"])).st_ino == os.stat("run.lock").st_ino
        print("held", held)
    """
    run_child(script(tmp_path, code), tmp_path, title="stage", lock_fd=descriptor)
    os.close(descriptor)
    assert "held True" in (tmp_path / "output.log").read_text()
