"""The launcher contract, held by real processes and real kills."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline import launch
from pipeline.config import Data, Label, Runtime
from pipeline.errors import Interrupted, UserError
from pipeline.jobs import LabelJob
from pipeline.launch import run_child, run_job
from pipeline.progress import Progress, read_progress, report, show_progress

ROOT = Path(launch.__file__).parent.parent

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
        from pipeline.launch import run_child
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


def test_a_child_that_stopped_by_itself_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_child(script(tmp_path, "os._exit(75)"), tmp_path, title="stage")


def test_run_job_runs_the_stage_function_of_the_job_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole path through pipeline.child, with a fake stage in its table."""
    out = tmp_path / "label-0"
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from pipeline import child
        child.STAGES["label"] = "fake_stage:run"
        sys.exit(child.main())
    """
    (tmp_path / "fake_stage.py").write_text(
        textwrap.dedent("""
        import logging, os
        from pipeline.errors import Interrupted, UserError
        def run(job):
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
    (tmp_path / ".model.safetensors.123.tmp").write_bytes(b"half")
    monkeypatch.setattr(launch, "CHILD", (sys.executable, "-c", ""))
    run_job(LabelJob(out=tmp_path, round=0, data=Data(), label=Label(), runtime=Runtime(), teachers=()))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_named_pipeline_where_the_user_works_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise AssertionError('the wrong package')")
    monkeypatch.chdir(tmp_path)
    code = "import pipeline.errors, sys; assert str(pipeline.__file__).startswith(sys.argv[1])"
    run_child([sys.executable, "-c", code, str(ROOT)], tmp_path, title="stage")


# ------------------------------------------------------------------------------------------------------------- kills


def test_sigterm_to_the_parent_lets_the_child_save_and_exits_75(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_ON_SIGTERM)
    wait_for((tmp_path / "ready").exists)
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()
    assert running(tmp_path) == []


def test_ctrl_c_in_the_terminal_lets_the_child_save_and_exits_75(tmp_path: Path) -> None:
    process = parent(tmp_path, SAVES_ON_SIGTERM)
    wait_for((tmp_path / "ready").exists)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").exists()
    assert running(tmp_path) == []


def test_sigkill_of_the_parent_ends_the_child(tmp_path: Path) -> None:
    code = """
        import pathlib, signal, time
        from pipeline.child import die_with_parent
        die_with_parent(signal.SIGKILL)
        pathlib.Path("ready").touch()
        time.sleep(60)
    """
    process = parent(tmp_path, code)
    wait_for((tmp_path / "ready").exists)
    process.kill()
    process.wait()
    wait_for(lambda: not running(tmp_path), timeout_s=30)


def test_a_parent_killed_before_the_child_began_ends_the_child(tmp_path: Path) -> None:
    code = "from pipeline.child import die_with_parent; import signal; die_with_parent(signal.SIGTERM); print('alive')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SELFTRAIN_PARENT": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL
    assert result.stdout == b""


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_with_its_descendants(tmp_path: Path) -> None:
    process = parent(tmp_path, IGNORES_SIGTERM, grace_s=1.0)
    wait_for((tmp_path / "ready").exists)
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert 1.0 <= time.monotonic() - began < 50.0  # the stage would take 60
    assert running(tmp_path) == []
    assert not psutil.pid_exists(int((tmp_path / "grandchild").read_text()))


def test_a_stop_that_comes_too_late_for_its_stage_stops_before_the_next(tmp_path: Path) -> None:
    code = SAVES_ON_SIGTERM.replace("sys.exit(75)", "sys.exit(0)")
    with pytest.raises(Interrupted, match=r"^stage is finished; stopped before the next stage$"):
        run_child(script(tmp_path, code), tmp_path, title="stage", stop=(tmp_path / "ready").exists)


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
            r"stopped without saving \(killed 1 s after it was asked to stop\); it goes on from its last",
        ),
        (FAILS_ON_SIGTERM, r"stopped without saving \(exit code 1\); it goes on from its last checkpoint"),
    ],
)
def test_the_message_of_a_stop_tells_whether_the_stage_is_saved(tmp_path: Path, code: str, message: str) -> None:
    grace = 1.0 if code is IGNORES_SIGTERM else 60.0
    with pytest.raises(Interrupted, match=message):
        run_child(script(tmp_path, code), tmp_path, title="stage", stop=(tmp_path / "ready").exists, grace_s=grace)
    assert running(tmp_path) == []


def test_stop_is_polled_and_works_in_a_thread(tmp_path: Path) -> None:
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            command = script(tmp_path, SAVES_ON_SIGTERM)
            run_child(command, tmp_path, title="stage", stop=(tmp_path / "ready").exists)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=120)
    assert [type(error) for error in outcome] == [Interrupted]
    assert (tmp_path / "saved").exists()


def test_an_error_in_the_progress_display_leaves_no_child(tmp_path: Path) -> None:
    code = """
        import pathlib, time
        from pipeline.progress import report
        report(pathlib.Path("."), 1, 2, "steps")
        time.sleep(60)
    """

    def broken(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_child(script(tmp_path, code), tmp_path, title="stage", on_progress=broken)
    assert running(tmp_path) == []


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


# --------------------------------------------------------------------------------------------------------- progress


def test_progress_of_the_child_reaches_the_parent_in_order(tmp_path: Path) -> None:
    code = """
        import pathlib, time
        from pipeline.progress import report
        for step in range(1, 5):
            report(pathlib.Path("."), step, 4, "steps", f"loss {step}")
            time.sleep(0.3)
    """
    seen: list[Progress] = []
    run_child(script(tmp_path, code), tmp_path, title="train", on_progress=seen.append)
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert seen[-1] == Progress("train", 4, 4, "steps", "loss 4")


def test_progress_is_throttled_but_the_last_report_is_written(tmp_path: Path) -> None:
    for step in range(1, 1001):
        report(tmp_path, step, 1000, "steps")
        if step == 2:
            assert read_progress(tmp_path, "s") == Progress("s", 1, 1000, "steps", "")
    assert read_progress(tmp_path, "s") == Progress("s", 1000, 1000, "steps", "")


def test_progress_to_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    report(tmp_path / "absent", 1, 2, "steps")
    assert read_progress(tmp_path / "absent", "s") is None


def test_show_progress_names_each_stage_once_where_there_is_no_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO())
    with show_progress(console) as show:
        for done in (1, 2):
            show(Progress("train teacher (round 0)", done, 2, "steps", ""))
        show(Progress("label (round 0)", 1, 0, "images", ""))
    assert console.file.getvalue().splitlines() == ["train teacher (round 0)", "label (round 0)"]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------- ranks

AGENT = "import sys; from pipeline.child import run_ranks; sys.exit(run_ranks(2, [{rank!r}]))"
RANK_HEAD = """
    import datetime, os, pathlib, signal, sys, time
    from pipeline.child import die_with_parent
    die_with_parent(signal.SIGKILL)
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    rank = dist.get_rank()
"""


def ranks(folder: Path, code: str) -> list[str]:
    """A command that runs the code in two ranks."""
    rank = script(folder, textwrap.dedent(RANK_HEAD) + textwrap.dedent(code), "rank.py")[1]
    return script(folder, AGENT.format(rank=rank), "agent.py")


RANKS_THAT_SAVE = """
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    pathlib.Path(f"ready{rank}").touch()
    flag = torch.zeros(1)
    while not flag:
        flag = torch.tensor([float(bool(stop))])
        dist.all_reduce(flag)
        time.sleep(0.05)
    pathlib.Path(f"saved{rank}").touch()
    sys.exit(75)
"""


def test_two_ranks_reduce_and_hold_the_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    code = """
        total = torch.tensor([float(rank + 1)])
        dist.all_reduce(total)
        held = os.fstat(int(os.environ["SELFTRAIN_LOCK_FD"])).st_ino == os.stat("run.lock").st_ino
        pathlib.Path(f"result{rank}").write_text(f"{total.item()} {held}")
        dist.destroy_process_group()
    """
    run_child(ranks(tmp_path, code), tmp_path, title="train", lock_fd=descriptor)
    os.close(descriptor)
    assert [(tmp_path / f"result{rank}").read_text() for rank in (0, 1)] == ["3.0 True", "3.0 True"]


def test_an_exception_in_one_rank_fails_the_stage_with_its_traceback(tmp_path: Path) -> None:
    code = """
        if rank == 1:
            raise ArithmeticError("defect in rank one")
        dist.barrier()
    """
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_child(ranks(tmp_path, code), tmp_path, title="train")
    assert "defect in rank one" in (tmp_path / "output.log").read_text()
    assert running(tmp_path) == []


def test_a_user_error_in_ranks_is_a_user_error(tmp_path: Path) -> None:
    code = "pathlib.Path('error.json').write_text('{\"message\": \"loss is nan\"}'); dist.barrier(); sys.exit(2)"
    with pytest.raises(UserError, match="loss is nan"):
        run_child(ranks(tmp_path, code), tmp_path, title="train")


def test_a_stop_lets_all_ranks_save(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_child(
            ranks(tmp_path, RANKS_THAT_SAVE),
            tmp_path,
            title="train",
            stop=lambda: (tmp_path / "ready0").exists() and (tmp_path / "ready1").exists(),
        )
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()
    assert running(tmp_path) == []


def test_sigkill_of_torchruns_agent_leaves_no_rank(tmp_path: Path) -> None:
    def kill_agent() -> bool:
        if not ((tmp_path / "ready0").exists() and (tmp_path / "ready1").exists()):
            return False
        (agent,) = [p for p in psutil.Process().children() if str(tmp_path / "agent.py") in p.cmdline()]
        agent.kill()
        return False

    with pytest.raises(RuntimeError, match="killed by SIGKILL"):
        run_child(ranks(tmp_path, RANKS_THAT_SAVE), tmp_path, title="train", stop=kill_agent)
    wait_for(lambda: not running(tmp_path), timeout_s=30)
