"""SIGKILL at random moments of a whole run, until it is done: every output equals that of a run never killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.command import finish, selftrain, type_command
from support.processes import kill, outputs, run, start
from support.waiting import LIMIT_S, wait_for

from pipeline.config import Config, changed, dump_yaml, parse
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job

pytestmark = pytest.mark.process


class Killed(Exception):
    """The stage's child was killed, so the run ends as if its parent had been killed too."""


@pytest.fixture(scope="module")
def small(digits: Config) -> Config:
    """A teacher, a student and a control of 24 steps."""
    training = {"steps": 24, "evaluations": 2, "warmup_steps": 3}
    return changed(
        digits,
        teacher=changed(digits.teacher, **training),
        student=changed(digits.student, **training, accumulation=2),
        runtime=changed(digits.runtime, checkpoint_every=5),
    )


@dataclass(frozen=True)
class Whole:
    """A run that was never killed, and how long its stages took by title."""

    folder: Path
    seconds: dict[str, float]


def run_whole(config: Config, folder: Path, run_stage: Callable[[Job], Any]) -> None:
    run_loop(config, folder, run_stage=lambda job, lock: run_stage(job))


def timed_whole(config: Config, folder: Path) -> Whole:
    whole = Whole(folder, {})

    def timed(job: Job) -> None:
        began = time.monotonic()
        run(job)
        whole.seconds[job.title] = time.monotonic() - began

    run_whole(config, whole.folder, timed)
    return whole


@pytest.fixture(scope="module")
def never_killed(small: Config, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return timed_whole(small, tmp_path_factory.mktemp("runs") / "whole")


def check_kills(config: Config, reference: Whole, folder: Path, num_kills: int, kills_per_stage: int = 2) -> None:
    """Kill runs at random moments, one run after the other, until so many stages were killed.

    A moment that comes too late, the stage being done, is no kill; how many there are depends on the machine's load.
    """
    killed = seed = 0
    while killed < num_kills:
        killed += kill_run(config, reference, folder / str(seed), kills_per_stage, seed)
        seed += 1


def kill_run(config: Config, reference: Whole, folder: Path, kills_per_stage: int, seed: int) -> int:
    """Kill every stage at random moments, each time with a new run_loop to go on; returns the number of kills."""
    draws = random.Random(seed)
    tries: Counter[Path] = Counter()
    killed: list[str] = []

    def run_stage(job: Job) -> None:
        tries[job.out] += 1
        if tries[job.out] > kills_per_stage:
            run(job)
        elif kill(start(job), draws.uniform(0.0, reference.seconds[job.title])):
            killed.append(job.title)
            raise Killed

    while True:
        try:
            run_whole(config, folder, run_stage)
            break
        except Killed:
            continue
    assert outputs(folder) == outputs(reference.folder)
    return len(killed)


def test_a_run_killed_at_random_ends_with_the_same_bytes(small: Config, never_killed: Whole, tmp_path: Path) -> None:
    check_kills(small, never_killed, tmp_path, num_kills=10)


def test_meta_pseudo_labels_killed_at_random_ends_with_the_same_bytes(small: Config, tmp_path: Path) -> None:
    """A teacher and its student, a fine-tune, a control."""
    raw = small.model_dump(mode="json")
    student = {"loss_normalization": "labeled", "unlabeled_ratio": 2, "noise_labeled": False, "accumulation": 1}
    sections = {
        "method": "meta",
        "student": {**raw["student"], **student},
        "uda": {"ramp_steps": 6},
        "meta": {"student_wait": 3},
        "finetune": {"image_size": 8, "steps": 12, "batch_size": 32},
    }
    config = parse(Config, {**raw, **sections}, "tests")
    whole = timed_whole(config, tmp_path / "whole")
    check_kills(config, whole, tmp_path, num_kills=3)


@pytest.mark.slow
def test_a_run_killed_a_hundred_times_ends_with_the_same_bytes(
    small: Config, never_killed: Whole, tmp_path: Path
) -> None:
    check_kills(small, never_killed, tmp_path, num_kills=100, kills_per_stage=5)


def test_the_command_killed_with_all_its_processes_or_alone_ends_with_the_same_bytes(
    small: Config, never_killed: Whole, tmp_path: Path
) -> None:
    """`selftrain run --no-prefect`. The children of a killed parent die; the next command waits for their lock."""
    config, folder = tmp_path / "small.yaml", tmp_path / "run"
    config.write_text(dump_yaml(small))
    command = ("run", config, "--run-dir", folder, "--no-prefect")
    for pattern, with_children in (("rounds/0/train-*/metrics.jsonl", True), ("rounds/1/train-*/metrics.jsonl", False)):
        process = type_command(*command, cwd=tmp_path)
        wait_for(lambda: process.poll() is not None or list(folder.glob(pattern)))  # noqa: B023 - waits in the loop
        children = psutil.Process(process.pid).children(recursive=True)
        for victim in [*(children if with_children else []), process]:
            victim.kill()
        code, _, err = finish(process)
        assert code == -9, err
        psutil.wait_procs(children, timeout=LIMIT_S)
        assert not any(child.is_running() for child in children)
    selftrain(*command, cwd=tmp_path)
    found = outputs(folder)
    assert found.pop("report.html")
    assert found == outputs(never_killed.folder)
