"""Noisy Student with a probe as its teacher: rounds on features, a committee, and a student that is trained after."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.encoders import probing
from support.processes import run

from pipeline.config import Config, Finetune, OtherLabels, Start, Training, changed
from pipeline.files import read_json
from pipeline.methods import METHODS
from pipeline.methods.method import Stages
from pipeline.methods.noisy_student.rounds import noisy_student
from pipeline.methods.round import Round
from pipeline.report.page import render
from pipeline.report.record import read_run
from pipeline.report.sections import sections
from pipeline.runs.control import train_control
from pipeline.runs.ledger import Ledger
from pipeline.runs.loop import run_loop
from pipeline.runs.run import Run
from pipeline.shards.dataset import open_split
from pipeline.stages.jobs import Job, Role

pytestmark = pytest.mark.process


def run_stage(job: Job, lock_fd: int) -> None:
    run(job)


@pytest.fixture(scope="module")
def config(digits: Config, teacher: Path) -> Config:
    """Two rounds on features of the digits teacher, then a student that starts from the second of them. One of the
    committee is by neighbors, on the teacher's own features."""
    probe = probing(teacher)
    student = changed(digits.student, start=None, steps=20)
    rounds = changed(digits.rounds, on_features=2, num_rounds=1, start="init", tolerance=0.5)
    label = changed(digits.label, temperature="auto")
    committee = probing(teacher, flip=True), probing(teacher, classifier="knn")
    return changed(digits, teacher=probe, student=student, rounds=rounds, label=label, committee=committee)


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "on-features"
    run_loop(config, run_dir, run_stage=run_stage)
    return run_dir


def test_images_pass_each_encoder_once(finished: Path) -> None:
    kinds = [entry["kind"] for entry in read_json(finished / "stages.json")["stages"]]
    assert kinds.count("embed") == 2
    assert kinds.count("label") == kinds.count("select") == 3
    assert kinds.count("probe") == 3 * 3  # teacher and both of the committee, in round 0 and on features
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


def test_without_rounds_nobody_joins_a_committee(config: Config, tmp_path: Path) -> None:
    alone = changed(
        config,
        rounds=changed(config.rounds, on_features=0, num_rounds=0),
        evaluate=changed(config.evaluate, control=False),
    )
    run_loop(alone, tmp_path / "run", run_stage=run_stage)
    kinds = [entry["kind"] for entry in read_json(tmp_path / "run" / "stages.json")["stages"]]
    assert kinds == ["embed", "probe", "evaluate"]


def test_the_same_command_runs_nothing_again(config: Config, finished: Path) -> None:
    def no_stage(job: Job, lock_fd: int) -> None:
        pytest.fail(f"{job.out} ran again")

    run_loop(config, finished, run_stage=no_stage)


def test_the_control_of_a_finetuned_probe_is_the_finetuned_teacher(
    config: Config, finished: Path, tmp_path: Path
) -> None:
    """Or else what the fine-tune brought would be taken for what unlabeled images brought."""
    folder = shutil.copytree(finished, tmp_path / "run")
    asked: list[tuple[str, Training]] = []

    class Asked(Run):
        def train(self, role: Role, round: int, training: Training, parent: str, **values: Any) -> Path:
            asked.append((role, training))
            return folder / parent

    tuning = changed(config, finetune=Finetune(image_size=8, steps=5), rounds=changed(config.rounds, num_rounds=0))
    run = Asked(tuning, folder, run_stage, 0, False, {}, {}, Ledger(folder, ""), lambda _: None)
    entries = enumerate(read_json(folder / "result.json")["rounds"][:2])
    teacher, student = (run.judge(entry["role"], number, folder / entry["train_dir"]) for number, entry in entries)
    tuned = replace(student, round=3, role="finetune", val_top1=1.0)
    assert train_control(run, METHODS["noisy_student"], [teacher, student, tuned], tuned) == folder / "control"
    ((role, training),) = asked
    assert (role, training.start) == ("control", Start(model=str(teacher.train), mode="init"))
    assert train_control(run, METHODS["noisy_student"], [teacher, student], student) == teacher.train


def test_the_report_shows_probe_student_and_control_with_their_cost(finished: Path) -> None:
    page = render(read_run(finished))
    assert "Round 0 teacher (probe)" in page
    assert "Round 3 student" in page
    assert "GFLOPs&nbsp;per&nbsp;image" in page
    assert "probe" in page.split("</header>")[0]


def test_the_report_shows_labels_as_they_were_merged(config: Config, finished: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    unlabeled = open_split(config.data, "unlabeled")
    truth = unlabeled.truth()
    assert truth is not None
    with open(tmp_path / "truth.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", *unlabeled.classes])
        table.writerows([unlabeled.key(row), *np.eye(10)[label]] for row, label in enumerate(truth))
    label = changed(config.label, others=(OtherLabels(labels=tmp_path / "truth.csv", weight=100),))
    rounds = changed(config.rounds, on_features=1, num_rounds=0)
    run_loop(changed(config, label=label, rounds=rounds), run_dir, run_stage=run_stage)
    seen = read_run(run_dir)
    (section,) = sections(seen)["round_sections"]
    assert section.inspected.accuracy == 1
    assert section.teachers.endswith("and label.others")
    assert [stage.record["kind"] for stage in seen.stages].count("merge") == 1


class Invented:
    """Stages that make nothing; the model of each round has the accuracy on val that is given."""

    num_classes = 10

    def __init__(self, config: Config, *val: float) -> None:
        self.config, self.val = config, val

    def _path(self, *_: object, **__: object) -> Path:
        return Path("nowhere")

    embed = probe = label = select = train = _path

    def judge(self, role: Role, number: int, train: Path, *_: object) -> Round:
        val = self.val[number]
        return Round(number, role, "model", val, (val, val), None, True, train, None, None)


def test_a_round_on_features_that_would_be_the_same_again_is_not_made(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = changed(config.rounds, on_features=3, num_rounds=0, tolerance=0, patience=2)
    stages = Invented(changed(config, rounds=rounds), 0.8, 0.7, 0.9, 0.9)
    assert len(noisy_student(cast(Stages, stages), lambda _: None)) == 2
    assert "rounds on features ended after round 1: the next one would be the same" in caplog.text
    other = changed(rounds, overrides=({"select.threshold": 0.9}, {"select.threshold": 0.5}))
    stages = Invented(changed(config, rounds=other), 0.8, 0.7, 0.9, 0.9)
    assert len(noisy_student(cast(Stages, stages), lambda _: None)) == 4
