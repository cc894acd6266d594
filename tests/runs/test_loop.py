"""The rounds: which models are kept, when the loop stops, what is reused. Stages are invented, folders are real."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.fake_stages import FakeStages, with_section
from support.saved import save_random

from pipeline.config import Config, Distillation, Finetune, OtherLabels, WeakView, changed, load_config
from pipeline.demos.digits import pack_digits
from pipeline.files import read_json
from pipeline.methods.round import Round
from pipeline.runs.folder import absolute
from pipeline.runs.loop import run_loop


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------- choice of the model


def test_every_round_trains_on_the_labels_of_the_round_before(config: Config, tmp_path: Path) -> None:
    stages, seen = FakeStages(0.6, 0.7, 0.8, 0.9), list[Round]()
    result = run_loop(config, tmp_path / "run", run_stage=stages, on_round=seen.append)
    assert [job.kind for job in stages.jobs] == ["train", *["label", "select", "train"] * 3, "train", "evaluate"]
    trained = [tmp_path / "run" / entry["train_dir"] for entry in result["rounds"]]
    assert [job.teachers for job in stages.of("label")] == [(folder,) for folder in trained[:3]]
    assert [r.num_selected for r in seen] == [None, 100, 200, 300]
    assert [r.role for r in seen] == ["teacher", "student", "student", "student"]
    assert result["final"]["round"] == 3
    assert result["final"]["model_dir"] == result["rounds"][3]["train_dir"]
    assert read_json(tmp_path / "run" / "result.json") == result


def test_the_final_model_is_the_best_on_val_and_the_earliest_of_equals(config: Config, tmp_path: Path) -> None:
    result = run_loop(with_section(config, "rounds", tolerance=0.2), tmp_path, run_stage=FakeStages(0.6, 0.8, 0.7, 0.8))
    assert result["final"]["round"] == 1
    assert [entry["kept"] for entry in result["rounds"]] == [True, True, True, True]


def test_a_worse_student_ends_the_loop_and_does_not_teach(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.5)
    result = run_loop(config, tmp_path, run_stage=stages)
    assert [entry["kept"] for entry in result["rounds"]] == [True, False]
    assert result["final"]["round"] == 0
    assert result["final"]["model_dir"] == result["rounds"][0]["train_dir"]


def test_patience_lets_the_old_teacher_teach_again(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.5, 0.7, 0.65)
    result = run_loop(with_section(config, "rounds", patience=2), tmp_path, run_stage=stages)
    assert [entry["kept"] for entry in result["rounds"]] == [True, False, True, False]
    teachers = [job.teachers[0].parent.name for job in stages.of("label")]
    assert teachers == ["0", "0", "2"]
    assert result["final"]["round"] == 2


def test_a_run_is_not_stopped_by_a_student_that_is_worse_by_chance(config: Config, tmp_path: Path) -> None:
    """A point is within chance where two models err on other images, and four are not where one errs on more."""
    stages = FakeStages(0.6, 0.59, 0.58, 0.57, shuffled=True)
    result = run_loop(config, tmp_path / "chance", run_stage=stages)
    assert [entry["kept"] for entry in result["rounds"]] == [True, False, False, False]
    assert {job.teachers[0].parent.name for job in stages.of("label")} == {"0"}
    result = run_loop(config, tmp_path / "sure", run_stage=FakeStages(0.6, 0.56, 0.56))
    assert [entry["kept"] for entry in result["rounds"]] == [True, False]


@pytest.mark.parametrize(("tolerance", "kept"), [(0.0, False), (0.05, False), (0.1000001, True)])
def test_tolerance_keeps_a_slightly_worse_student(config: Config, tmp_path: Path, tolerance: float, kept: bool) -> None:
    one = with_section(config, "rounds", num_rounds=1, tolerance=tolerance)
    result = run_loop(one, tmp_path, run_stage=FakeStages(0.6, 0.5))
    assert result["rounds"][1]["kept"] is kept
    assert result["final"]["round"] == 0  # kept or not, the best on val is the final model


def test_an_equal_student_is_kept(config: Config, tmp_path: Path) -> None:
    result = run_loop(with_section(config, "rounds", num_rounds=1), tmp_path, run_stage=FakeStages(0.6, 0.6))
    assert result["rounds"][1]["kept"]
    assert result["final"]["round"] == 0


def test_finetune_starts_from_the_best_and_competes(config: Config, tmp_path: Path) -> None:
    finetuned = changed(config, finetune=Finetune(image_size=12, steps=20, frozen_layers=1))
    stages = FakeStages(0.6, 0.8, 0.7, finetune=0.85)
    result = run_loop(finetuned, tmp_path, run_stage=stages)
    (job,), (student, _) = stages.of("train", "finetune"), stages.of("train", "student")
    assert job.training.start.model == str(tmp_path / result["rounds"][1]["train_dir"])
    assert result["final"]["round"] == 3
    assert result["rounds"][-1]["role"] == "finetune"
    assert (job.training.image_size, job.training.steps, job.training.frozen_layers) == (12, 20, 1)
    for same in ("model", "model_args", "mean", "std"):
        assert getattr(job.training, same) == getattr(student.training, same)


def test_finetune_sees_labeled_images_as_they_are(config: Config, tmp_path: Path) -> None:
    """Random crops are what the fine-tune undoes; a mirrored digit is another one."""
    stages = FakeStages(0.6, 0.8, 0.7, finetune=0.85)
    run_loop(changed(config, finetune=Finetune(image_size=12)), tmp_path, run_stage=stages)
    training = stages.of("train", "finetune")[0].training
    assert not config.student.weak.flip
    assert training.weak == WeakView(crop="none", flip=False)
    assert (training.noise_labeled, training.strong.num_ops, training.strong.cutout) == (False, 0, 0)
    assert (training.unlabeled_ratio, training.dropout, training.stochastic_depth) == (0, 0, 0)


def test_students_start_from_their_teacher_when_asked(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    result = run_loop(with_section(config, "rounds", start="init"), tmp_path, run_stage=stages)
    starts = [job.training.start.model for job in stages.of("train", "student")]
    assert starts == [str(tmp_path / entry["train_dir"]) for entry in result["rounds"][:3]]


def test_an_ensemble_labels_with_the_last_kept_models(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    run_loop(with_section(config, "label", ensemble=2), tmp_path, run_stage=stages)
    names = [[path.parent.name for path in job.teachers] for job in stages.of("label")]
    assert names == [["0"], ["1", "0"], ["2", "1"]]


def test_overrides_change_their_round_only(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    overrides = ({"student.steps": 10}, {"select.threshold": 0.3})
    run_loop(with_section(config, "rounds", overrides=overrides), tmp_path, run_stage=stages)
    assert [job.training.steps for job in stages.of("train", "student")] == [10, 40, 40]
    assert [job.select.threshold for job in stages.of("select")] == [0.0, 0.3, 0.3]


# ----------------------------------------------------------------------------------------------------- again, and again


def test_a_finished_run_runs_no_stage_again(config: Config, tmp_path: Path) -> None:
    result = run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    before, again = everything(tmp_path), FakeStages()
    assert run_loop(config, tmp_path, run_stage=again) == result
    assert again.jobs == []
    assert everything(tmp_path) == before


def test_a_changed_config_goes_to_sibling_folders_and_keeps_the_earlier_result(config: Config, tmp_path: Path) -> None:
    first = run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    before, stages = everything(tmp_path), FakeStages(0.6, 0.7, 0.8, 0.9)
    second = run_loop(with_section(config, "select", threshold=0.5), tmp_path, run_stage=stages)
    assert stages.of("train", "teacher") == []  # what does not depend on select is reused
    assert len(stages.of("label")) == 2
    assert first["rounds"][1]["select_dir"] != second["rounds"][1]["select_dir"]
    (earlier,) = (tmp_path / "earlier").iterdir()
    assert read_json(earlier / "result.json") == first
    assert load_config(earlier / "config.yaml").select.threshold == 0.0
    after = {name: data for name, data in everything(tmp_path).items() if name in before}
    moved = {"result.json", "config.yaml", "run.lock", "stages.json"}
    assert {k: v for k, v in after.items() if k not in moved} == {k: v for k, v in before.items() if k not in moved}


def test_going_back_to_the_earlier_config_trains_nothing(config: Config, tmp_path: Path) -> None:
    other = with_section(config, "select", threshold=0.5)
    first = run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    run_loop(other, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    again = FakeStages()
    assert run_loop(config, tmp_path, run_stage=again) == first
    assert again.jobs == []
    assert len(list((tmp_path / "earlier").iterdir())) == 2


def test_operational_settings_change_nothing(config: Config, tmp_path: Path) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    again = FakeStages()
    run_loop(with_section(config, "runtime", log_every=1, checkpoint_every=1), tmp_path, run_stage=again)
    assert again.jobs == []
    assert not (tmp_path / "earlier").exists()


def test_other_data_keeps_the_earlier_result(config: Config, tmp_path: Path) -> None:
    pack_digits(tmp_path / "other", num_labeled=200)
    run = tmp_path / "run"
    first = run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    second = run_loop(
        with_section(config, "data", root=tmp_path / "other"), run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9)
    )
    assert first["data"] != second["data"]
    (earlier,) = (run / "earlier").iterdir()
    assert read_json(earlier / "result.json") == first


def test_another_file_at_a_path_of_the_config_keeps_the_earlier_result(config: Config, tmp_path: Path) -> None:
    table, run = tmp_path / "clip.csv", tmp_path / "run"
    table.write_text("image,a,b\n1,0.5,0.5\n")
    config = with_section(config, "label", others=(OtherLabels(labels=table),))
    first = run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    table.write_text("image,a,b\n1,0.75,0.25\n")
    second = run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    assert first["rounds"][1]["label_dir"] != second["rounds"][1]["label_dir"]
    (earlier,) = (run / "earlier").iterdir()
    assert read_json(earlier / "result.json") == first


def test_another_model_to_distill_at_its_path_keeps_the_earlier_result(config: Config, tmp_path: Path) -> None:
    model, run, classes = tmp_path / "model.safetensors", tmp_path / "run", tuple("0123456789")
    config = with_section(config, "student", distillation=Distillation(model=str(save_random(model, classes))))
    first = run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    save_random(model, classes, seed=1)
    run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    (earlier,) = (run / "earlier").iterdir()
    assert read_json(earlier / "result.json") == first


def test_a_model_of_one_round_is_found_from_anywhere_and_another_at_its_path_keeps_the_earlier_result(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, run, classes = tmp_path / "model.safetensors", tmp_path / "run", tuple("0123456789")
    save_random(model, classes)
    overrides = ({}, {"student.distillation.model": "model.safetensors"}, {})
    config = with_section(config, "rounds", overrides=overrides, num_rounds=3)
    assert absolute(config).rounds.overrides == ({}, {"student.distillation.model": str(model)}, {})
    first = run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    assert list(first["files"]) == ["rounds.overrides.1.student.distillation.model"]
    save_random(model, classes, seed=1)
    run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    (earlier,) = (run / "earlier").iterdir()
    assert read_json(earlier / "result.json") == first


def test_a_run_keeps_the_threads_that_it_resolved_first(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = with_section(config, "runtime", threads=0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    run_loop(auto, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2)))
    again = FakeStages()
    run_loop(auto, tmp_path, run_stage=again)
    assert load_config(tmp_path / "config.yaml").runtime.threads == 6
    assert again.jobs == []
    run_loop(with_section(auto, "runtime", threads=0, processes=2), tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    assert load_config(tmp_path / "config.yaml").runtime.threads == 1  # of 2 cores: not 6 a process
