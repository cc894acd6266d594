"""The control, and the reading of test, which come last. Stages are invented, folders are real."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_stages import FakeStages, with_section
from support.processes import run
from support.saved import save_random

from pipeline.config import Config, Distillation, Finetune, Optimizer, Start, Training, changed, parse
from pipeline.methods import METHODS
from pipeline.models.format import read_info, read_state
from pipeline.runs.control import fit_probe
from pipeline.runs.inputs import with_inputs
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import EvaluateJob, Job


def test_the_control_has_the_final_students_budget(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8, 0.75)
    result = run_loop(config, tmp_path, run_stage=stages)
    (control,), student = stages.of("train", "control"), stages.of("train", "student")[1].training
    assert result["final"]["round"] == 2
    assert control.selection is None
    assert control.training.steps == student.steps
    assert control.training.batch_size == student.batch_size + student.unlabeled_batch_size
    assert control.training.unlabeled_ratio == 0
    for same in ("model", "optimizer", "strong", "dropout", "stochastic_depth", "ema_decay", "warmup_steps"):
        assert getattr(control.training, same) == getattr(student, same)
    assert result["final"]["control_dir"] == str(control.out.relative_to(tmp_path))


def test_the_control_of_inherited_weights_has_the_steps_of_all_ancestors(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.5, 0.7, 0.8)
    result = run_loop(with_section(config, "rounds", start="init", patience=2), tmp_path, run_stage=stages)
    (control,) = stages.of("train", "control")
    assert result["final"]["round"] == 3
    assert control.training.steps == 2 * config.student.steps  # rounds 2 and 3; round 1 was not kept
    assert control.training.start.model == str(tmp_path / result["rounds"][0]["train_dir"])


def test_the_control_of_inherited_weights_stops_early_by_the_rule_of_the_students(
    config: Config, tmp_path: Path
) -> None:
    """It may take the steps of two students, and as many steps as one of them without a new best on val."""
    own = changed(config.student, early_stop=2, evaluations=4)
    stages = FakeStages(0.6, 0.7, 0.8, 0.75)
    run_loop(with_section(changed(config, student=own), "rounds", start="init"), tmp_path, run_stage=stages)
    control = stages.of("train", "control")[0].training
    assert (control.steps, control.evaluations, control.early_stop) == (2 * own.steps, 8, 2)


@pytest.mark.process
def test_a_finetune_at_a_higher_resolution_is_evaluated_there(config: Config, tmp_path: Path) -> None:
    """Real stages, on digits of 8 pixels shown at 12."""
    short = with_section(with_section(config, "rounds", num_rounds=1), "evaluate", control=False)
    finetune = Finetune(image_size=12, steps=12, batch_size=32, frozen_layers=1, optimizer=Optimizer(lr=0.05))
    result = run_loop(
        changed(short, finetune=finetune),
        tmp_path / "run",
        run_stage=lambda job, lock_fd: run(job) and None,
    )
    assert [entry["role"] for entry in result["rounds"]] == ["teacher", "student", "finetune"]
    best, finetuned = max(result["rounds"][:2], key=lambda entry: entry["val_top1"]), result["rounds"][2]
    before, after = (tmp_path / "run" / entry["train_dir"] for entry in (best, finetuned))
    assert [read_info(folder).input_size for folder in (before, after)] == [(3, 8, 8), (3, 12, 12)]
    old, new = read_state(before), read_state(after)
    assert torch.equal(old["stem.weight"], new["stem.weight"])
    assert not torch.equal(old["fc.weight"], new["fc.weight"])
    assert finetuned["val_top1"] > 0.3


@pytest.mark.parametrize(("finetune", "num_controls"), [(0.9, 2), (0.7, 1)])
def test_the_control_of_a_finetuned_model_is_finetuned_too(
    config: Config, tmp_path: Path, finetune: float, num_controls: int
) -> None:
    different = ({"student.steps": 10}, {"student.steps": 20}, {"student.steps": 30})
    config = with_section(config, "rounds", overrides=different, patience=2)
    stages = FakeStages(0.6, 0.8, 0.7, 0.75, finetune=finetune)
    result = run_loop(changed(config, finetune=Finetune(image_size=12, steps=5)), tmp_path, run_stage=stages)
    controls = stages.of("train", "control")
    assert controls[0].training.steps == 10  # of round 1, which the fine-tune began with, not of the last round
    assert len(controls) == num_controls
    assert result["final"]["control_dir"] == str(controls[-1].out.relative_to(tmp_path))
    if num_controls == 2:
        (final,) = stages.of("train", "finetune")
        start = Start(model=str(controls[0].out), mode="init")
        assert controls[1].training == changed(final.training, start=start)
        assert controls[1].round == final.round


@pytest.mark.parametrize(("teacher", "student", "finetune"), [(0.9, 0.8, 0.7), (0.8, 0.9, 0.7), (0.8, 0.7, 0.9)])
def test_the_control_has_the_recipe_of_the_one_of_two_that_is_final(
    config: Config, tmp_path: Path, teacher: float, student: float, finetune: float
) -> None:
    """Else the network or its optimizer would be taken for what unlabeled images brought. Fine-tuned is the student."""
    raw = {
        "method": "meta",
        "data": {"root": str(config.data.root)},
        "teacher": {"model": "wide_resnet16_2", "warmup_steps": 5, "ema_decay": 0.99},
        "student": {
            **{"model": "wide_resnet10_1", "image_size": 8, "steps": 40, "batch_size": 32, "unlabeled_ratio": 2},
            "keep": "best",
        },
        "finetune": {"image_size": 8, "steps": 10},
    }
    stages = FakeStages(teacher, student, finetune=finetune)
    result = run_loop(parse(Config, raw, "tests"), tmp_path, run_stage=stages)
    (control,) = [job for job in stages.of("train", "control") if job.training.steps == 40]
    wide = teacher == result["final"]["val_top1"]
    assert control.training.model == ("wide_resnet16_2" if wide else "wide_resnet10_1")
    assert control.training.ema_decay == (0.99 if wide else 0.999)
    assert control.training.keep == ("last" if wide else "best")
    assert (control.training.batch_size, control.training.unlabeled_ratio) == (96, 0)


def test_every_stage_is_told_that_another_environment_is_accepted(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    run_loop(config, tmp_path, run_stage=stages, accept_environment=True)
    assert {job.kind for job in stages.jobs if job.accept_environment} == {"train", "label", "select", "evaluate"}
    assert all(job.accept_environment for job in stages.jobs)


def test_no_control_when_it_is_turned_off_or_there_is_no_student(config: Config, tmp_path: Path) -> None:
    for name, one in (
        ("off", with_section(config, "evaluate", control=False)),
        ("none", with_section(config, "rounds", num_rounds=0)),
    ):
        stages = FakeStages(0.6, 0.7, 0.8, 0.9)
        result = run_loop(one, tmp_path / name, run_stage=stages)
        assert not stages.of("train", "control")
        assert result["final"]["control_test_top1"] is None


def test_test_is_read_after_every_choice_is_written(config: Config, tmp_path: Path) -> None:
    class Stages(FakeStages):
        def __call__(self, job: Job, lock_fd: int) -> None:
            if isinstance(job, EvaluateJob):
                assert job.split == "test"
                written = json.loads((tmp_path / "result.json").read_text())
                assert written["final"]["round"] == 3
                assert written["final"]["test_top1"] is None
            super().__call__(job, lock_fd)

    stages = Stages(0.6, 0.7, 0.8, 0.9)
    result = run_loop(config, tmp_path, run_stage=stages)
    assert len(stages.of("evaluate")) == 1
    names = {"test_top1": "final", "teacher_test_top1": "teacher", "control_test_top1": "control"}
    assert {key: result["final"][key] for key in names} == {key: 0.7 + len(n) / 100 for key, n in names.items()}


class ProbedRun:
    """A run that fits no probe, but notes what it was asked for."""

    def __init__(self, config: Config) -> None:
        self.config = with_inputs(config)
        self.asked: list[Training] = []

    def embed(self, training: Training, splits: tuple[str, ...]) -> Path:
        return Path("features")

    def probe(self, role: str, round: int, training: Training, parent: str, features: Path) -> Path:
        self.asked.append(training)
        return Path("probe")


def test_the_probe_of_a_run_sees_what_its_start_expects_and_no_key_of_the_student_stops_it(
    config: Config, tmp_path: Path
) -> None:
    """It is fitted last, so an error would come after every training."""
    first: Any = SimpleNamespace(round=1)
    start = Start(model=str(save_random(tmp_path / "m.safetensors", tuple("0123456789"), mean=(0.3, 0.3, 0.3))))
    keys = {"mean": Training().mean, "std": Training().std, "preprocessing": "mean_std", "distillation": Distillation()}
    run: Any = ProbedRun(with_section(config, "student", start=start, **keys))
    assert fit_probe(run, METHODS["noisy_student"], first) == Path("probe")
    (asked,) = run.asked
    assert (asked.preprocessing, asked.mean, asked.distillation) == ("given", (0.3, 0.3, 0.3), None)


def test_the_start_of_a_student_that_is_not_trained_has_no_probe(config: Config, tmp_path: Path) -> None:
    start = Start(model=str(save_random(tmp_path / "m.safetensors", tuple("0123456789"))))
    teacher: Any = SimpleNamespace(round=0)
    with_start = with_section(config, "student", start=start)
    run: Any = ProbedRun(with_start)
    assert fit_probe(run, METHODS["noisy_student"], teacher) == Path("probe")
    run = ProbedRun(with_section(with_start, "rounds", num_rounds=0))
    assert fit_probe(run, METHODS["noisy_student"], teacher) is None


def test_a_start_that_no_probe_can_see_leaves_the_run_without_one(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    first: Any = SimpleNamespace(round=1)
    model = save_random(tmp_path / "m.safetensors", tuple("0123456789"), preprocessing="mean_image")
    student = parse(Training, {"start": {"model": str(model)}, "image_size": 8, "unlabeled_ratio": 4}, "student")
    run: Any = ProbedRun(config.model_copy(update={"student": student}))
    assert fit_probe(run, METHODS["noisy_student"], first) is None
    assert "there is no probe beside the models of this run: a probe on its start" in caplog.text
