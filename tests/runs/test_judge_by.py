"""With `rounds.judge_by` every choice on val follows that figure. Stages are invented, folders are real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.fake_stages import FakeStages, with_section

from pipeline.ablation.ablate import judged_of
from pipeline.config import Config, Finetune, JudgeBy, NetworkSettings, changed, parse
from pipeline.errors import UserError
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import TrainJob

LABEL = np.repeat([0, 1], [90, 10])


class Answers(FakeStages):
    """Models that are right on as many of 90 images of one class, and of 10 of another, as they are told.

    The sums of both must differ."""

    def __init__(self, *right: tuple[int, int], finetune: tuple[int, int] = (0, 0)) -> None:
        super().__init__(*(sum(both) / 100 for both in right), finetune=sum(finetune) / 100)
        self.right = dict(zip([*self.val, self.finetune], [*right, finetune], strict=True))

    def write(self, out: Path, job: TrainJob, settings: NetworkSettings, val: float) -> None:
        super().write(out, job, settings, val)
        many, few = self.right[val]
        pred = np.where(np.concatenate([np.arange(90) < many, np.arange(10) < few]), LABEL, 1 - LABEL).astype(np.int32)
        confidence = np.ones(100, np.float32)
        np.savez(out / "predictions-val.npz", label=LABEL.astype(np.int32), pred=pred, confidence=confidence)


def judged_by(config: Config, by: JudgeBy, **rounds: object) -> Config:
    return with_section(config, "rounds", judge_by=by, **rounds)


@pytest.fixture
def undigested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are written over after a stage is finished."""
    monkeypatch.setattr("pipeline.evaluate.predictions.check_output", lambda path: path)


pytestmark = pytest.mark.usefixtures("undigested")


@pytest.mark.parametrize("by", ["balanced_accuracy", "macro_f1"])
def test_a_student_that_loses_the_rare_class_does_not_become_the_teacher(
    config: Config, tmp_path: Path, by: JudgeBy
) -> None:
    """It is right more often, on the frequent class."""
    answers = ((70, 8), (88, 1), (72, 8))
    by_top1 = Answers(*answers)
    result = run_loop(with_section(config, "rounds", num_rounds=2), tmp_path / "top1", run_stage=by_top1)
    assert [entry["kept"] for entry in result["rounds"]] == [True, True, False]
    assert [entry["judged"] for entry in result["rounds"]] == [None] * 3
    assert result["final"]["round"] == 1
    stages = Answers(*answers)
    result = run_loop(judged_by(config, by, num_rounds=2, patience=2), tmp_path / by, run_stage=stages)
    assert [entry["kept"] for entry in result["rounds"]] == [True, False, True]
    assert {job.teachers[0].parent.name for job in stages.of("label")} == {"0"}
    assert result["final"]["round"] == 2
    assert judged_of(result)["round"] == 2
    if by == "balanced_accuracy":
        assert [entry["judged"] for entry in result["rounds"]] == pytest.approx(
            [(70 / 90 + 0.8) / 2, (88 / 90 + 0.1) / 2, (72 / 90 + 0.8) / 2]
        )


def test_patience_is_not_spent_on_a_student_that_is_worse_within_chance(config: Config, tmp_path: Path) -> None:
    """One image of ten more or less is chance; seven are not."""
    result = run_loop(judged_by(config, "balanced_accuracy"), tmp_path / "a", run_stage=Answers((80, 8), (82, 7)))
    assert [entry["kept"] for entry in result["rounds"]] == [True, False, False, False]
    result = run_loop(judged_by(config, "balanced_accuracy"), tmp_path / "b", run_stage=Answers((80, 8), (85, 1)))
    assert [entry["kept"] for entry in result["rounds"]] == [True, False], "the loop stopped"


def test_a_fine_tune_competes_by_it(config: Config, tmp_path: Path) -> None:
    tuned = changed(judged_by(config, "balanced_accuracy", num_rounds=1), finetune=Finetune(image_size=12, steps=20))
    stages = Answers((60, 6), (70, 8), finetune=(85, 2))
    assert run_loop(tuned, tmp_path, run_stage=stages)["final"]["round"] == 1


def test_of_a_teacher_and_student_trained_together_the_final_one_is_chosen_by_it(
    config: Config, tmp_path: Path
) -> None:
    recipe = {"model": "wide_resnet10_1", "image_size": 8, "steps": 40, "batch_size": 32}
    raw = {
        "method": "meta",
        "data": {"root": str(config.data.root)},
        "teacher": {"model": "wide_resnet10_1"},
        "student": {**recipe, "unlabeled_ratio": 2, "keep": "best"},
        "rounds": {"judge_by": "balanced_accuracy"},
    }
    stages = Answers((70, 8), (88, 1))
    assert run_loop(parse(Config, raw, "tests"), tmp_path, run_stage=stages)["final"]["round"] == 0
    assert {job.best_by for job in stages.of("train", "student")} == {"balanced_accuracy"}


def test_a_stage_without_its_answers_is_refused_with_the_fix(config: Config, tmp_path: Path) -> None:
    class Without(Answers):
        def write(self, out: Path, job: TrainJob, settings: NetworkSettings, val: float) -> None:
            super().write(out, job, settings, val)
            (out / "predictions-val.npz").unlink()

    with pytest.raises(UserError, match=r"has no predictions-val\.npz, which rounds\.judge_by macro_f1 needs; delete"):
        run_loop(judged_by(config, "macro_f1"), tmp_path, run_stage=Without((70, 8)))
