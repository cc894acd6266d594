"""Stages in real child processes, which tests run, stop and kill, and the bytes that they leave.

Children are forked from a server that has imported torch already, so that a kill costs a second and not five. What they
run is what `python -m pipeline.stages.child` runs; tests of the launcher use the real command.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, NetworkSettings, Training, changed
from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError
from pipeline.files import read_json, write_bytes
from pipeline.methods import METHODS
from pipeline.stages.child import guarded
from pipeline.stages.jobs import Job, LabelJob, Role, SelectJob, TrainJob
from pipeline.stages.kinds import read_job
from pipeline.stages.preamble import run_stage
from support.waiting import wait_for

_PRELOAD = [f"pipeline.{name}" for name in ("train.stage", "labels.stage", "selection.stage", "methods.meta.learner")]
HAS_BF16 = torch.cpu._is_avx512_bf16_supported()
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_PRELOAD)
_NOT_COMPARED = {"timing.jsonl", "output.log", "messages.jsonl", "job.json", "progress.json", "run.lock"}
"""Wall-clock times, absolute paths and what is for people."""


def train_job(
    config: Config, out: Path, *, selection: Path | None = None, training: Training | None = None, **update: Any
) -> TrainJob:
    """The job of a teacher or, with a selection, of a student."""
    role: Role = "student" if selection else "teacher"
    own = training or (config.student if selection else config.teacher)
    return changed(TrainJob.of(config, out, role, 1 if selection else 0, own, selection=selection), **update)


def method_job(config: Config, out: Path, **update: Any) -> TrainJob:
    """The job of the training that the config's method has in place of rounds."""
    method = METHODS[config.method]
    whose = {"method": method.name, "learner": method.learner, "settings": method.settings(config)}
    if method.reads("teacher") and config.meta.teacher == "network":
        names = NetworkSettings.model_fields
        whose["teacher"] = NetworkSettings(**{name: getattr(config.teacher, name) for name in names})
    return changed(TrainJob.of(config, out, "student", 1, config.student, **whose), **update)


def label_job(config: Config, out: Path, *teachers: Path, **update: Any) -> LabelJob:
    """The job of a teacher's pass."""
    return changed(LabelJob.of(config, out, 1, teachers), **update)


def select_job(config: Config, out: Path, labels: Path, **update: Any) -> SelectJob:
    """The job of a selection."""
    return changed(SelectJob.of(config, out, 1, labels), **update)


# ---------------------------------------------------------------------------------------------------------- processes


def _child(job_path: Path, before: Callable[[], None] | None) -> None:
    log = os.open(job_path.parent / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if before:
        before()
    sys.exit(guarded(lambda: _run(job_path), job_path.parent))


def _run(job_path: Path) -> int:
    run_stage(read_job(job_path))
    return EXIT_OK


def start(job: Job, before: Callable[[], None] | None = None) -> BaseProcess:
    """Begin a stage in a child; `before` runs in it first."""
    write_bytes(job.out / "job.json", job.model_dump_json().encode())
    process = _FORKS.Process(target=_child, args=(job.out / "job.json", before))
    process.start()
    return process


def run(job: Job, before: Callable[[], None] | None = None) -> Path:
    """Run a stage to its end; returns its folder. Raises what the launcher raises."""
    process = start(job, before)
    process.join()
    if process.exitcode == EXIT_USER_ERROR:
        message = read_json(job.out / "error.json")["message"]
        (job.out / "error.json").unlink()  # as the launcher does
        raise UserError(message)
    if process.exitcode == EXIT_INTERRUPTED:
        raise Interrupted
    assert process.exitcode == 0, (process.exitcode, (job.out / "output.log").read_text()[-3000:])
    return job.out


def kill(process: BaseProcess, delay_s: float, signum: int = signal.SIGKILL) -> int:
    """Signal a child after a delay, unless it ended before; returns its exit code."""
    process.join(delay_s)
    with contextlib.suppress(ProcessLookupError):
        if process.is_alive() and process.pid:
            os.kill(process.pid, signum)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def has_come_to(job: Job, step: int) -> bool:
    """Whether metrics.jsonl has the line of a step, or of a later one."""
    path = job.out / "metrics.jsonl"
    return path.exists() and any(int(found) >= step for found in re.findall(r'"step": (\d+),', path.read_text()))


def signal_at(
    job: Job,
    step: int,
    delay_s: float = 0.0,
    signum: int = signal.SIGKILL,
    before: Callable[[], None] | None = None,
) -> int:
    """Run a training until `delay_s` after the line of a step, and signal it; returns its exit code."""
    process = start(job, before)
    wait_for(lambda: has_come_to(job, step) or not process.is_alive())
    return kill(process, delay_s, signum)


def run_with_a_kill(job: Job, step: int, before: Callable[[], None] | None = None) -> Path:
    """Run a training to its end, with a SIGKILL after the line of a step; returns its folder."""
    assert signal_at(job, step, before=before) == -signal.SIGKILL
    return run(job, before)


# ---------------------------------------------------------------------------------------------------------------- bytes


def outputs(folder: Path) -> dict[str, bytes]:
    """Every byte that must not depend on kills. Checkpoints are left out: which of them are kept does."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in _NOT_COMPARED
        and path.name[0] != "."
        and "checkpoints" not in path.relative_to(folder).parts
    }
