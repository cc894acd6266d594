"""A training that was killed ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.damage import put
from support.processes import HAS_BF16, has_come_to, kill, outputs, run, signal_at, start, train_job
from support.spoilers import limit_file_size
from support.waiting import wait_for

from pipeline.config import Config, Training, changed
from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, Interrupted, UserError
from pipeline.models.format import model_digest
from pipeline.stages import launch
from pipeline.stages.jobs import TrainJob
from pipeline.stages.launch import run_job


@pytest.fixture
def job(digits: Config, selection: Path, tmp_path: Path) -> TrainJob:
    """A student with every kind of noise, as in the fixture `student`."""
    return train_job(digits, tmp_path / "train", selection=selection)


def set_runtime(job: TrainJob, **values: object) -> TrainJob:
    return changed(job, runtime=changed(job.runtime, **values))


def steps_logged(folder: Path) -> list[tuple[int, bool]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], "val_top1" in line) for line in lines]


# ------------------------------------------------------------------------------------------------- by the real command


def test_resume_is_bit_exact_after_kill(job: TrainJob, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the launcher and `python -m pipeline.stages.child`: the parent is told that its child was killed."""
    moment = random.Random(0).uniform(0.0, 0.1)
    killed: list[int] = []

    def kill_once() -> bool:
        if not killed and has_come_to(job, 15):
            time.sleep(moment)
            killed.append(pid_of_child())
            os.kill(killed[0], signal.SIGKILL)
        return False

    def pid_of_child() -> int:
        import psutil

        return next(p.pid for p in psutil.Process().children() if "pipeline.stages.child" in p.cmdline())

    monkeypatch.setattr(launch, "POLL_S", 0.01)
    with pytest.raises(launch.StageFailed, match="killed by SIGKILL"):
        run_job(job, stop=kill_once)
    assert not (job.out / "model.safetensors").exists()
    run_job(job)
    assert outputs(job.out) == outputs(student)


# --------------------------------------------------------------------------------------------------- in forked children


def test_two_runs_are_equal(job: TrainJob, student: Path) -> None:
    assert outputs(run(job)) == outputs(student)


@pytest.mark.parametrize("step", [5, 10, 15, 26, 40])
def test_killed_after_any_line_it_ends_with_the_same_bytes(job: TrainJob, student: Path, step: int) -> None:
    signal_at(job, step, random.Random(step).uniform(0, 0.05))
    assert outputs(run(job)) == outputs(student)


def test_three_kills_in_one_training_change_nothing(job: TrainJob, student: Path) -> None:
    for step in (5, 15, 26):
        signal_at(job, step, 0.02)
    assert outputs(run(job)) == outputs(student)


def test_sigterm_saves_at_the_next_step_and_exits_75(job: TrainJob, student: Path) -> None:
    assert signal_at(job, 15, signum=signal.SIGTERM) == EXIT_INTERRUPTED
    assert not json.loads((job.out / "stage.json").read_text())["complete"]
    last = max(int(path.stem[5:]) for path in (job.out / "checkpoints").glob("step-*.pt"))
    assert last >= 15
    assert outputs(run(job)) == outputs(student)


def test_sigterm_while_importing_or_evaluating_loses_nothing(job: TrainJob, student: Path) -> None:
    for delay in (0.1, 0.4, 0.5):
        kill(start(job), delay, signal.SIGTERM)
    assert outputs(run(job)) == outputs(student)


def test_every_log_step_is_written_once_after_kills(job: TrainJob) -> None:
    for step in (13, 20):
        signal_at(job, step)
    with open(job.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "lo')  # what a kill in the middle of a write leaves
    run(job)
    logged = steps_logged(job.out)
    assert [step for step, is_eval in logged if not is_eval] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [step for step, is_eval in logged if is_eval] == [13, 26, 40]


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 units")
def test_resume_is_bit_exact_in_bf16(job: TrainJob, tmp_path: Path) -> None:
    whole, cut = (changed(set_runtime(job, precision="bf16"), out=tmp_path / name) for name in ("whole", "cut"))
    signal_at(cut, 15, 0.03)
    assert outputs(run(cut)) == outputs(run(whole))


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4, "keep": "best"},
        {"noise_labeled": False, "optimizer": {"name": "rmsproptf", "lr": 0.01}},
        {"schedule": {"name": "step"}, "optimizer": {"name": "alexnet", "lr": 0.1}},
        {"activation": "prelu", "block_dropout": 0.2, "dropout_at": {"blocks.1": 0.1}, "drop_connect": 0.3},
        {"model": "resnet9", "model_args": {"width": 8}, "fractional_pooling": 0.7},
        {"weak": {"crop": "scale", "color_jitter": {"hue": 0.1}, "pca_color": 0.1}},
        {"frozen_layers": 1, "optimizer": {"name": "lamb", "lr": 0.01}, "loss_normalization": "labeled"},
        {
            "model": "polynet_small",
            "model_args": {"stage_b": "mpoly-3", "width": 0.05, "stem_stride": 1},
            "stochastic_depth": 0.25,
        },
        {
            **{"preprocessing": "pca_whitening", "mean": Training().mean, "std": Training().std},
            **{"activation": "elu", "init": "kaiming", "zero_gamma": True, "keep": "best"},
            **{"schedule": {"name": "plateau", "patience": 1}, "evaluations": 8},
        },
    ],
)
def test_resume_is_bit_exact_with(job: TrainJob, tmp_path: Path, changes: dict[str, object]) -> None:
    training = type(job.training).model_validate({**job.training.model_dump(), **changes})
    whole, cut = (changed(job, training=training, out=tmp_path / name) for name in ("whole", "cut"))
    signal_at(cut, 26)
    assert outputs(run(cut)) == outputs(run(whole))


def test_where_checkpoints_and_lines_are_written_does_not_matter(job: TrainJob, student: Path) -> None:
    """Intervals are operational: they may change between kills, and the weights stay the same."""
    signal_at(set_runtime(job, checkpoint_every=7), 15)
    run(set_runtime(job, checkpoint_every=1000, keep_checkpoints=1))
    assert outputs(job.out) == outputs(student)
    assert [p.name for p in (job.out / "checkpoints").glob("step-*")] == ["step-000000040.pt"]


def test_a_damaged_model_is_refused_and_once_deleted_made_again_to_the_byte(job: TrainJob, student: Path) -> None:
    """From the last checkpoint, so nothing that was made from it is stale."""
    shutil.copytree(student, job.out)
    weights = job.out / "model.safetensors"
    put(weights, weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: .*; delete this file"):
        model_digest(job.out)
    weights.unlink()
    assert outputs(run(job)) == outputs(student)


# ------------------------------------------------------------------------------------------------------ what is refused


def stop_early(job: TrainJob) -> None:
    assert signal_at(job, 5, signum=signal.SIGTERM) == EXIT_INTERRUPTED


def test_a_resume_in_another_environment_is_refused_unless_accepted(job: TrainJob, student: Path) -> None:
    stop_early(job)
    other = set_runtime(job, threads=2)
    with pytest.raises(UserError, match=r"threads: 1 -> 2.*--accept-environment"):
        run(other)
    run(changed(other, accept_environment=True))
    record = json.loads((job.out / "stage.json").read_text())
    assert record["environment"]["threads"] == 2
    assert [e["threads"] for e in record["earlier_environments"]] == [1]


def test_other_settings_in_the_folder_of_a_training_are_refused(job: TrainJob) -> None:
    stop_early(job)
    before = outputs(job.out)
    with pytest.raises(UserError, match=r"seed: 0 -> 1.*choose another folder"):
        run(changed(job, seed=1))
    assert outputs(job.out) == before


def test_a_folder_with_other_files_is_refused_and_untouched(job: TrainJob) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a train stage"):
        run(job)
    assert [p.name for p in job.out.iterdir() if p.suffix == ".txt"] == ["thesis.txt"]


def test_a_truncated_checkpoint_is_named_with_its_fix(job: TrainJob, student: Path) -> None:
    signal_at(job, 26)
    newest = max((job.out / "checkpoints").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.raises(UserError, match=rf"{newest.name} is not a readable checkpoint.*delete it"):
        run(job)
    newest.unlink()
    assert outputs(run(job)) == outputs(student)


def test_a_finished_training_is_not_touched_again(student: Path, job: TrainJob) -> None:
    before = {path: path.stat().st_mtime_ns for path in student.rglob("*") if path.suffix not in {".log", ".json"}}
    run(changed(job, out=student))
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --------------------------------------------------------------------------------------------------------- broken runs


def test_a_training_whose_metrics_are_gone_says_how_to_begin_it_anew(job: TrainJob, student: Path) -> None:
    """It used to go on, and to end without the lines of the steps before."""
    signal_at(job, 15)
    (job.out / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is gone, .* delete the folder .* and type the same") as told:
        run(job)
    assert f"delete the folder {job.out} and" in str(told.value)
    shutil.rmtree(job.out)
    assert outputs(run(job)) == outputs(student)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("lr", [1e6, 1e12, 1e30])
def test_a_loss_that_is_not_finite_names_step_images_and_checkpoint(
    job: TrainJob, lr: float, accumulation: int
) -> None:
    optimizer = changed(job.training.optimizer, lr=lr)
    training = changed(job.training, optimizer=optimizer, accumulation=accumulation, clip_norm=0.0)
    broken = changed(job, training=training)
    message = r"not finite at step \d+ \(images labeled-000000/\d/\d{4}, .*(?i:lower) optimizer\.lr.*heckpoint"
    with pytest.raises(UserError, match=message) as failure:
        run(set_runtime(broken, checkpoint_every=1))
    assert not (job.out / "model.safetensors").exists()
    saved = sorted((job.out / "checkpoints").glob("step-*.pt"))
    assert str(saved[-1] if saved else "No checkpoint") in str(failure.value)
    for path in saved:
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(t).all() for t in state["network"]["model"].values() if t.is_floating_point())


@pytest.mark.parametrize("num_bytes", [1000, 40_000])
def test_a_full_disk_is_a_clear_error_and_the_same_command_goes_on(
    job: TrainJob, student: Path, num_bytes: int
) -> None:
    """1 kB is too little for the metrics, 40 kB for a checkpoint; stage.json is there before."""
    process = start(set_runtime(job, checkpoint_every=1000))
    wait_for(lambda: (job.out / "stage.json").exists() or not process.is_alive())
    kill(process, 0)
    with pytest.raises(UserError, match=r"cannot write .*free space"):
        run(job, partial(limit_file_size, num_bytes))
    assert outputs(run(job)) == outputs(student)


def test_exit_codes_are_those_of_the_contract() -> None:
    assert (EXIT_OK, EXIT_INTERRUPTED) == (0, 75)
    assert not issubclass(Interrupted, Exception)  # no handler of errors takes it
