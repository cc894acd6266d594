"""How a run ends when something is wrong: with the data, the folder, a stage or the teacher."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.fake_stages import NUM_VAL, FakeStages, with_section

from pipeline.config import Config, Distillation, Split, Start, changed
from pipeline.errors import UserError
from pipeline.evaluate.metrics import wilson_interval
from pipeline.files import read_json, write_json
from pipeline.packing.pack import pack
from pipeline.runs import loop
from pipeline.runs.folder import absolute
from pipeline.runs.loop import run_loop
from pipeline.shards.dataset import open_split
from pipeline.stages.jobs import Job, TrainJob
from pipeline.stages.lock import FolderInUse, run_lock


def test_a_teacher_at_chance_is_an_error(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.1)
    with pytest.raises(UserError, match=r"the round-0 teacher is at chance on val \(10\.0% of 10 classes\).*steps"):
        run_loop(config, tmp_path, run_stage=stages)
    assert len(stages.jobs) == 1


def test_a_teacher_at_chance_whom_nobody_learns_from_is_a_warning(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a cell of an ablation may be: that is its figure, and the others go on."""
    alone = changed(config, rounds=changed(config.rounds, num_rounds=0))
    run_loop(alone, tmp_path, run_stage=FakeStages(0.1))
    assert "cannot be told from chance on val (10.0% of 10 classes)" in caplog.text


def test_a_teacher_that_may_be_at_chance_is_a_warning(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.12, 0.7, 0.8, 0.9))
    assert "the teacher of round 0 cannot be told from chance on val (12.0% of 10 classes)" in caplog.text


def test_a_second_run_in_the_folder_is_refused_with_the_pid_of_the_first(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "run_lock", partial(run_lock, wait_s=0.1))
    with (
        run_lock(tmp_path),
        pytest.raises(UserError, match=rf"{tmp_path} is in use by process {os.getpid()}; .*another folder"),
    ):
        run_loop(config, tmp_path, run_stage=FakeStages())


def test_splits_that_share_images_are_refused(config: Config, tmp_path: Path) -> None:
    root = config.data.root
    assert root is not None
    shutil.copy(root / "labeled-000000.tar", tmp_path / "more.tar")
    stages = FakeStages()
    with pytest.raises(UserError, match=r"labeled and val share 100 images"):
        run_loop(with_section(config, "data", val=(tmp_path / "more.tar",)), tmp_path / "run", run_stage=stages)
    assert stages.jobs == []


def test_a_folder_with_files_that_is_no_run_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"has files, such as notes\.txt, but is no run folder; choose another"):
        run_loop(config, tmp_path, run_stage=FakeStages())
    assert not (tmp_path / "run.lock").exists()
    (tmp_path / "notes.txt").unlink()
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    run_loop(config, tmp_path, run_stage=FakeStages())


def test_a_folder_of_the_users_rounds_is_no_run_folder(config: Config, tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    with pytest.raises(UserError, match=r"has files, such as rounds, but is no run folder"):
        run_loop(config, tmp_path, run_stage=FakeStages())


@pytest.mark.parametrize(("name", "what"), [("manifest.json", "a packed folder"), ("stage.json", "a stage's folder")])
def test_a_folder_of_another_kind_is_refused(config: Config, tmp_path: Path, name: str, what: str) -> None:
    for file in ("run.lock", name):
        (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match=rf"is {what}, not a run's"):
        run_loop(config, tmp_path, run_stage=FakeStages())


def test_a_run_folder_of_another_version_is_refused_with_the_fix(config: Config, tmp_path: Path) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("old_key: 1\n")
    with pytest.raises(
        UserError, match=r"unknown key `old_key`.* A run wrote this file, with another version .*--run-dir"
    ):
        run_loop(config, tmp_path, run_stage=FakeStages())


def test_a_run_without_its_plugin_leaves_its_result_in_place(config: Config, tmp_path: Path) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    result = tmp_path / "result.json"
    write_json(result, {**read_json(result), "plugins": {"my_net.py": "0123"}})
    before = result.read_bytes()
    with pytest.raises(UserError, match=r"was made with --plugin my_net\.py; pass it"):
        run_loop(config, tmp_path, run_stage=FakeStages())
    assert result.read_bytes() == before


def test_a_training_in_which_no_unlabeled_image_taught_is_a_warning(
    digits: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unsure(FakeStages):
        def __call__(self, job: Job, lock_fd: int) -> None:
            super().__call__(job, lock_fd)
            if isinstance(job, TrainJob):
                (job.out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "mask_rate": 0.0}\n')

    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    run_loop(changed(digits, method="fixmatch"), tmp_path, run_stage=Unsure(0.6, 0.7, 0.8))
    assert "no unlabeled image was ever sure enough to teach" in caplog.text


def test_bad_images_that_are_skipped_are_counted(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "more.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("broken.png"), io.BytesIO(b""))
    config = with_section(config, "data", unlabeled=(tmp_path / "more.tar",), bad_images="skip")
    result = run_loop(config, tmp_path / "run", run_stage=FakeStages(0.6, 0.7, 0.8, 0.9))
    assert result["skipped"] == {"unlabeled": 1}
    assert "1 bad samples of unlabeled are left out" in caplog.text


def test_a_run_holds_off_a_pack_into_its_data(config: Config, tmp_path: Path) -> None:
    assert config.data.root is not None
    shutil.copytree(config.data.root, tmp_path / "packed")

    class Packing(FakeStages):
        def train(self, job: TrainJob) -> None:
            super().train(job)
            with pytest.raises(FolderInUse, match="packed is read by a run"), run_lock(tmp_path / "packed", wait_s=0):
                pass

    run_loop(
        with_section(config, "data", root=tmp_path / "packed"), tmp_path / "run", run_stage=Packing(0.6, 0.7, 0.8, 0.9)
    )
    with run_lock(tmp_path / "packed", wait_s=0):
        pass


@pytest.mark.parametrize("split", ["unlabeled", "test"])
def test_data_that_change_under_a_run_are_an_error(config: Config, tmp_path: Path, split: str) -> None:
    """Teacher and student would be judged on different val sets."""
    assert config.data.root is not None
    shutil.copytree(config.data.root, tmp_path / "packed")
    manifest = tmp_path / "packed" / "manifest.json"

    class Packing(FakeStages):
        def train(self, job: TrainJob) -> None:
            super().train(job)
            content = read_json(manifest)
            content["shards"] = [s for s in content["shards"] if s["name"] != f"{split}-000001"]
            write_json(manifest, content)

    with pytest.raises(UserError, match=f"the {split} split changed while the run was under way"):
        run_loop(
            with_section(config, "data", root=tmp_path / "packed"),
            tmp_path / "run",
            run_stage=Packing(0.6, 0.7, 0.8, 0.9),
        )


def test_relative_starts_are_found_from_anywhere(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = Start(model="weights.safetensors")
    resolved = absolute(with_section(config, "teacher", start=start))
    assert resolved.teacher.start is not None
    assert resolved.teacher.start.model == str(tmp_path / "weights.safetensors")
    named = absolute(with_section(config, "teacher", start=Start(model="timm:resnet50.a1_in1k")))
    assert named.teacher.start == Start(model="timm:resnet50.a1_in1k")


def test_a_model_to_distill_is_found_from_anywhere_and_missed_before_the_first_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_section(config, "student", distillation=Distillation(model="teacher.safetensors"))
    resolved = absolute(config).student.distillation
    assert resolved is not None
    assert resolved.model == str(tmp_path / "teacher.safetensors")
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    with pytest.raises(UserError, match=r"no model at .*teacher\.safetensors: it does not exist"):
        run_loop(config, tmp_path / "run", run_stage=stages)
    assert not stages.jobs


def test_a_run_folder_that_cannot_be_made_is_an_error(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write in .*file/run: .*choose another folder"):
        run_loop(config, tmp_path / "file" / "run", run_stage=FakeStages())


def test_a_failed_stage_ends_the_run_and_the_same_call_goes_on(config: Config, tmp_path: Path) -> None:
    class Broken(FakeStages):
        def train(self, job: TrainJob) -> None:
            if job.round == 2:
                raise UserError("student.steps is wrong")
            super().train(job)

    with pytest.raises(UserError, match=r"student\.steps is wrong"):
        run_loop(config, tmp_path, run_stage=Broken(0.6, 0.7, 0.8, 0.9))
    assert not (tmp_path / "result.json").exists()
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    run_loop(config, tmp_path, run_stage=stages)
    assert [(job.kind, getattr(job, "round", None)) for job in stages.jobs[:2]] == [("train", 2), ("label", 3)]


def test_without_a_test_split_the_result_has_val_figures(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = config.data.root
    assert root is not None
    shutil.copytree(root, tmp_path / "packed")
    manifest = read_json(tmp_path / "packed" / "manifest.json")
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] != "test"]
    write_json(tmp_path / "packed" / "manifest.json", manifest)
    stages = FakeStages(0.6, 0.7, 0.8, 0.9)
    result = run_loop(with_section(config, "data", root=tmp_path / "packed"), tmp_path / "run", run_stage=stages)
    assert stages.of("evaluate") == []
    assert result["final"]["val_top1"] == 0.9
    assert result["final"]["test_top1"] is None
    assert "no test split" in caplog.text
    (control,) = stages.of("train", "control")
    assert result["final"]["control_dir"] == str(control.out.relative_to(tmp_path / "run"))
    assert read_json(tmp_path / "run" / "result.json") == result


def test_a_class_without_labeled_images_is_an_error_before_any_training(config: Config, tmp_path: Path) -> None:
    """Of Noisy Student the selection says so, which may allow it."""
    for number, path in enumerate(["labeled/cat", "unlabeled/any", "val/cat", "val/dog"]):
        (tmp_path / path).mkdir(parents=True)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / path / "0.png")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    splits: tuple[Split, ...] = ("labeled", "unlabeled", "val")
    for split in splits:
        pack(tmp_path / split, tmp_path / "packed", split=split, classes=tmp_path / "classes.txt")
    config = changed(with_section(config, "data", root=tmp_path / "packed"), method="uda")
    stages = FakeStages()
    with pytest.raises(UserError, match=r"labeled split has no image of 1 of 2 classes, such as 'dog'"):
        run_loop(config, tmp_path / "run", run_stage=stages)
    assert not stages.jobs


@pytest.mark.parametrize(("method", "model"), [("uda", "student of round 1"), ("meta", "teacher of round 0")])
def test_a_model_without_a_teacher_before_it_that_may_be_at_chance_is_a_warning(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, model: str
) -> None:
    """Of UDA the student, of Meta Pseudo Labels the teacher that was trained with its student."""
    run_loop(changed(config, method=method), tmp_path, run_stage=FakeStages(0.1))
    assert f"the {model} cannot be told from chance on val (10.0% of 10 classes)" in caplog.text


def test_num_val_is_that_of_the_digits(config: Config) -> None:
    assert abs(len(open_split(config.data, "val")) - NUM_VAL) <= 1
    assert np.isclose(sum(wilson_interval(36, NUM_VAL)) / 2, 0.1, atol=0.02)
