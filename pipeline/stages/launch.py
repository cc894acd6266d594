"""Run a stage in a child process that never outlives its parent, stops on request, and explains its failure.

A stage in its own process cannot take its parent with it (CUDA errors, out of memory), gives all of its memory back,
and can have several ranks. The child has a process group of its own, in the same session. Signals of a terminal or of a
scheduler therefore reach the parent only, which passes exactly one SIGTERM on.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError
from pipeline.files import cannot_write, open_to_append, read_json, write_bytes
from pipeline.stages.environment import child_variables, stage_variables
from pipeline.stages.folder import check_stage_folder
from pipeline.stages.interrupt import deferred
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import kind_of
from pipeline.stages.messages import MESSAGES, Messages
from pipeline.stages.nodes import others
from pipeline.stages.preamble import run_stage
from pipeline.stages.progress import Progress, read_progress
from pipeline.stages.stall import Stall

CHILD: tuple[str, ...] = (sys.executable, "-m", "pipeline.stages.child")
GRACE_S = 15.0
"""The seconds from SIGTERM to SIGKILL, fewer than the 30 s of Prefect's worker, which would leave ranks behind."""
POLL_S = 0.2
TAIL_LINES = 30
_FULL = 2**16
"""A disk with fewer free bytes than this has no room for a message."""


class StageFailed(RuntimeError):
    """A defect or a lack of memory ended the process of a stage. The message holds the end of its log."""


class StageStalled(StageFailed):
    """A stage stood still for too long and was ended. The same command goes on from what is saved."""


def run_job(
    job: Job,
    lock_fd: int | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Run one stage to completion, in child processes or, if its kind needs none, in this one.

    Args:
        job: The job to run; it is written to job.json in the stage folder.
        lock_fd: The file descriptor of the run lock, which the children hold too.
        on_progress: Is called with each new report of the stage.
        stop: Is polled; once it returns True, the stage is asked to save and stop.

    Raises:
        UserError: the input is bad; the message is the child's.
        Interrupted: SIGTERM, SIGINT or `stop` stopped the stage; the message says whether its state is saved.
        StageFailed: the child failed; the message holds the end of its log.
        StageStalled: it stood still for `runtime.stall_minutes`, and was ended.
    """
    check_stage_folder(job.out, job.kind)
    write_bytes(job.out / "job.json", job.model_dump_json(indent=2).encode())
    if not kind_of(job).process:
        if on_progress:
            on_progress(Progress(job.title, 0, 1, job.kind, ""))
        run_stage(job)
        if on_progress:
            on_progress(Progress(job.title, 1, 1, job.kind, ""))
        return
    with others(job, stop, on_progress) as machines:
        run_child(
            [*CHILD, str(job.out / "job.json")],
            job.out,
            title=job.title,
            env={**stage_variables(job.runtime), **machines.variables},
            lock_fd=lock_fd,
            on_progress=on_progress,
            stop=lambda: bool(stop and stop()) or machines.is_broken(),
            stall_s=60 * job.runtime.stall_minutes,
            explain=machines.explain,
        )


def run_child(
    command: Sequence[str],
    out: Path,
    *,
    title: str,
    env: Mapping[str, str] | None = None,
    lock_fd: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    grace_s: float = GRACE_S,
    stall_s: float = 0.0,
    explain: Callable[[BaseException], BaseException] = lambda error: error,
) -> None:
    """Run one command to its end and append its output to `out/output.log`. Its outcomes are those of `run_job`.

    In any case nothing is left running that the command started in its process group or below it. `explain` gets the
    error that says what became of it, and returns the one to raise.
    """
    for stale in ("error.json", "progress.json", MESSAGES):
        (out / stale).unlink(missing_ok=True)
    path = out / "output.log"
    log_start = _begin_log(path, command)
    messages = Messages(out / MESSAGES)
    with deferred() as signalled, open_to_append(path) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_variables(env or {}, lock_fd),
            pass_fds=() if lock_fd is None else (lock_fd,),
            process_group=0,
        )
        stall = Stall(stall_s)

        def asked() -> bool:
            return signalled() or bool(stop and stop())

        try:
            stopped = _watch(process, out, title, grace_s, on_progress, asked, messages, stall) and not stall.reached
        finally:
            _kill_rest(process)
            messages.tell()
            messages.path.unlink(missing_ok=True)
        stopped = stopped or asked()
        if stall.reached and not stopped:
            raise StageStalled(f"{title} {stall}, and was ended, see {path}; the same command goes on")
        if process.returncode != EXIT_OK:
            tail = _tail(path, log_start)
            raise explain(_outcome(process.returncode, out, title, grace_s, tail, stopped=stopped))
        if stopped:  # too late for this stage, in time for the next
            raise Interrupted(f"{title} is finished; stopped before the next stage")


def _begin_log(path: Path, command: Sequence[str]) -> int:
    """Write the command into its log; returns where its output begins there."""
    try:
        with open_to_append(path) as log:
            log.write(f"--- {datetime.datetime.now():%Y-%m-%d %H:%M:%S} {shlex.join(command)}\n".encode())
            log.flush()
            return log.tell()
    except OSError as error:
        raise cannot_write(path, error) from error


# ------------------------------------------------------------------------------------------------ watching, stopping


def _watch(
    process: subprocess.Popen[bytes],
    out: Path,
    title: str,
    grace_s: float,
    on_progress: Callable[[Progress], None] | None,
    stop: Callable[[], bool],
    messages: Messages,
    stall: Stall,
) -> bool:
    """Wait until the child or its grace ends, and pass on messages, progress and a stop; returns whether it was
    stopped. A child that stands still is stopped too."""
    shown: Progress | None = None
    deadline: float | None = None
    while True:
        ended = _has_ended(process)
        messages.tell()
        now = read_progress(out, title)
        stands_still = stall.sees(now)
        if now and deadline is not None:
            now = replace(now, text="saving, then stopping")
        if on_progress and now and now != shown:
            on_progress(now)
            shown = now
        if ended or (deadline is not None and time.monotonic() > deadline):
            return deadline is not None
        if deadline is None and (stop() or stands_still):
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        time.sleep(POLL_S)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended. It is not reaped: while it is there, no other group can get its group's id."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_rest(process: subprocess.Popen[bytes]) -> None:
    """Kill all that is left of the child: its process group, and descendants in other sessions (torchrun's ranks)."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()
    psutil.wait_procs(descendants, timeout=5)


# ---------------------------------------------------------------------------------------------------- explaining


def _outcome(code: int, out: Path, title: str, grace_s: float, tail: str, *, stopped: bool) -> BaseException:
    """What a child's exit code other than 0 is to its parent."""
    error_path = out / "error.json"
    # A rank that is asked to stop but cannot save leaves a message, while torchrun's agent reports the stop only.
    if code in (EXIT_USER_ERROR, EXIT_INTERRUPTED) and error_path.exists():
        message = read_json(error_path)["message"]
        error_path.unlink()
        return UserError(message)
    if code == EXIT_USER_ERROR and shutil.disk_usage(out).free < _FULL:
        return UserError(f"{title}: the disk that {out} is on is full; free space, and the same command goes on")
    if code == EXIT_INTERRUPTED:
        return Interrupted(f"{title} was stopped and is saved")
    if stopped:
        how = f"killed {grace_s:g} s after it was asked to stop" if code == -signal.SIGKILL else _cause(code)
        return Interrupted(f"{title} was stopped without saving ({how}); the same command goes on from what is saved")
    return StageFailed(f"{title} failed ({_cause(code)}). The end of {out / 'output.log'}:\n{tail}")


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = "; out of memory?" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


def _tail(log: Path, start: int) -> str:
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])
