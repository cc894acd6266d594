"""Noisy Student with a probe as its teacher: rounds on features, a committee, and a student that is trained after."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.encoders import probing
from support.processes import run

from pipeline.config import Config, changed
from pipeline.files import read_json
from pipeline.report.page import render
from pipeline.report.record import read_run
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job

pytestmark = pytest.mark.process


def run_stage(job: Job, lock_fd: int) -> None:
    run(job)


@pytest.fixture(scope="module")
def config(digits: Config, teacher: Path) -> Config:
    """Two rounds on features of the digits teacher, then a student that starts from the second of them."""
    probe = probing(teacher)
    student = changed(digits.student, start=None, steps=20)
    rounds = changed(digits.rounds, on_features=2, num_rounds=1, start="init", tolerance=0.5)
    label = changed(digits.label, temperature="auto")
    return changed(
        digits, teacher=probe, student=student, rounds=rounds, label=label, committee=(probing(teacher, flip=True),)
    )


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "on-features"
    run_loop(config, run_dir, run_stage=run_stage)
    return run_dir


def test_images_pass_each_encoder_once(finished: Path) -> None:
    kinds = [entry["kind"] for entry in read_json(finished / "stages.json")["stages"]]
    assert kinds.count("embed") == 2
    assert kinds.count("label") == kinds.count("select") == 3
    assert kinds.count("probe") == 2 * 3  # teacher and committee, in round 0 and on features
    final = read_json(finished / "result.json")["final"]["round"]
    assert kinds.count("train") == (2 if final == 3 else 1)  # the student, and its control if it is the final model


def test_a_student_starts_from_the_probe_and_its_head(finished: Path) -> None:
    result = read_json(finished / "result.json")
    student = result["rounds"][-1]
    assert student["role"] == "student"
    assert student["round"] == 3
    started = read_json(finished / student["train_dir"] / "stage.json")["inputs"]["start"]
    probes = [
        read_json(finished / r["train_dir"] / "stage.json")["outputs"]["model_sha256"] for r in result["rounds"][:3]
    ]
    assert started in probes[1:]


def test_the_same_command_runs_nothing_again(config: Config, finished: Path) -> None:
    def no_stage(job: Job, lock_fd: int) -> None:
        pytest.fail(f"{job.out} ran again")

    run_loop(config, finished, run_stage=no_stage)


def test_the_report_shows_probe_student_and_control_with_their_cost(finished: Path) -> None:
    page = render(read_run(finished))
    assert "Round 0 teacher (probe)" in page
    assert "Round 3 student" in page
    assert "GFLOPs per image" in page
    assert "probe" in page.split("</header>")[0]
