"""Two gloo ranks: the same gradients as one process, and the same exact resume."""

from __future__ import annotations

import json
import os
import random
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from support.processes import label_job, outputs, run, train_job
from support.ranks import become_machine, in_two, run_ranks
from support.spoilers import become_rank_that_is_stopped_in_step_3, become_rank_with_a_clock
from support.tiny_net import register

from pipeline.config import Config, changed
from pipeline.errors import EXIT_INTERRUPTED, UserError
from pipeline.models import build, set_trainable
from pipeline.models.format import read_state
from pipeline.stages import launch
from pipeline.stages.folder import stage_record
from pipeline.stages.jobs import TrainJob
from pipeline.stages.launch import run_job
from pipeline.train.checkpoint import Checkpoints


@pytest.fixture
def job(digits: Config, selection: Path, tmp_path: Path) -> TrainJob:
    return train_job(digits, tmp_path / "train", selection=selection)


@pytest.fixture
def tiny_job(digits: Config, selection: Path, tmp_path: Path) -> TrainJob:
    """Without BatchNorm, dropout and stochastic depth."""
    plain = {"model": "selftrain_tiny", "model_args": {}, "dropout": 0.0, "stochastic_depth": 0.0, "steps": 20}
    return train_job(digits, tmp_path / "one", selection=selection, training=changed(digits.student, **plain))


def check_close(a: Path, b: Path) -> None:
    first, second = read_state(a), read_state(b)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


def test_two_ranks_equal_one_process_with_the_whole_batch(tiny_job: TrainJob, tmp_path: Path) -> None:
    run(tiny_job, register)
    two = in_two(tiny_job, tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    check_close(tiny_job.out, two.out)


def test_averages_of_two_ranks_follow_batchnorm_statistics(job: TrainJob, tmp_path: Path) -> None:
    training = changed(job.training, steps=4, warmup_steps=1, evaluations=1, ema_decay=0.0)
    two = in_two(changed(job, training=training), tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    state = Checkpoints(two.out, stage_record(two.out)["fingerprint"], keep=1).load_last()
    assert state is not None
    assert any("running_mean" in name for name in state["network"]["model"])
    torch.testing.assert_close(state["network"]["ema"], state["network"]["model"], rtol=0, atol=0)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_whole_batch(tiny_job: TrainJob, tmp_path: Path, accumulation: int) -> None:
    run(tiny_job, register)
    training = changed(tiny_job.training, accumulation=accumulation)
    check_close(tiny_job.out, run(changed(tiny_job, training=training, out=tmp_path / "micro"), register))


def test_accumulation_in_two_ranks_equals_the_whole_batch(tiny_job: TrainJob, tmp_path: Path) -> None:
    """Gradients are shared at the last micro-step alone, and slots go to micro-steps and ranks."""
    run(tiny_job, register)
    training = changed(tiny_job.training, accumulation=2)
    two = in_two(changed(tiny_job, training=training), tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    check_close(tiny_job.out, two.out)


@pytest.mark.parametrize("checkpoint_every", [10, 7])
def test_two_ranks_resume_bit_exact_after_kill_and_sigterm(
    job: TrainJob, tmp_path: Path, checkpoint_every: int
) -> None:
    """Lines come every 5 steps: between two of them each rank has sums of its own to go on with."""
    job = changed(job, runtime=changed(job.runtime, checkpoint_every=checkpoint_every))
    whole, cut, stopped = (in_two(job, tmp_path, name) for name in ("whole", "cut", "stopped"))
    assert run_ranks(whole) == [0, 0]
    assert run_ranks(cut, kill_at=25) == [-9, -9]
    assert run_ranks(stopped, kill_at=15, signum=signal.SIGTERM) == [EXIT_INTERRUPTED] * 2
    for resumed in (cut, stopped):
        assert run_ranks(resumed) == [0, 0]
        assert outputs(resumed.out) == outputs(whole.out)


def test_two_machines_take_over_what_two_processes_began_and_end_with_their_bits(job: TrainJob, tmp_path: Path) -> None:
    whole, cut = (in_two(job, tmp_path, name) for name in ("whole", "cut"))
    assert run_ranks(whole) == [0, 0]
    assert run_ranks(cut, kill_at=15) == [-9, -9]
    machines = changed(cut, runtime=changed(cut.runtime, processes=1, nodes=2))
    assert run_ranks(machines, rank=partial(become_machine, tmp_path / "store.json")) == [0, 0]
    assert outputs(cut.out) == outputs(whole.out)


def test_a_stop_of_one_rank_stops_all_in_the_same_step(job: TrainJob, tmp_path: Path) -> None:
    """Not some steps later: with slow steps the grace would be over by then."""
    two = in_two(job, tmp_path, "two")
    assert run_ranks(two, rank=become_rank_that_is_stopped_in_step_3) == [EXIT_INTERRUPTED] * 2
    (saved,) = (two.out / "checkpoints").glob("step-*.pt")
    assert int(saved.stem[5:]) == 3


def test_two_ranks_train_with_frozen_layers(job: TrainJob, tmp_path: Path) -> None:
    training = changed(job.training, frozen_layers=1, steps=4, warmup_steps=0, evaluations=1)
    two = in_two(changed(job, training=training), tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    state = Checkpoints(two.out, stage_record(two.out)["fingerprint"], keep=1).load_last()
    assert state is not None
    model = build("wide_resnet10_1", 10, model_args=job.training.model_args)
    model.load_state_dict(state["network"]["model"])
    set_trainable(model, 1)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    means = {name: t for name, t in state["network"]["model"].items() if name.endswith("running_mean")}
    still = [name for name, mean in means.items() if not mean.any()]  # as it was made
    assert frozen
    assert still
    assert len(still) < len(means)


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(job: TrainJob) -> None:
    training = changed(job.training, batch_size=33, accumulation=2)
    with pytest.raises(UserError, match=r"`batch_size` is 33, which 1 processes x 2 micro-steps cannot share evenly"):
        run(changed(job, training=training))


def test_label_rows_are_the_same_for_two_ranks(digits: Config, labels: Path, teacher: Path, tmp_path: Path) -> None:
    job = in_two(label_job(digits, tmp_path, teacher), tmp_path, "two")
    assert run_ranks(job) == [0, 0]
    assert arrows(job.out) == arrows(labels)


def test_the_time_that_two_ranks_label_together_counts_once(digits: Config, teacher: Path, tmp_path: Path) -> None:
    job = in_two(label_job(digits, tmp_path, teacher), tmp_path, "two")
    assert run_ranks(job, rank=become_rank_with_a_clock) == [0, 0]
    timing = [json.loads(line) for line in (job.out / "timing.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in timing] == [0.5] * len(timing)


def arrows(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in outputs(folder).items() if name.endswith(".arrow")}


def test_two_ranks_under_torchrun_resume_bit_exact_after_kill(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command: launcher, torchrun's agent, two ranks; one rank is killed, so all are."""
    reference, cut = in_two(job, tmp_path, "reference"), in_two(job, tmp_path, "cut")
    assert run_ranks(reference) == [0, 0]
    killed: list[int] = []

    def kill_a_rank() -> bool:
        lines = cut.out / "metrics.jsonl"
        if not killed and lines.exists() and '"step": 15' in lines.read_text():
            ranks = [p for p in psutil.Process().children(recursive=True) if "pipeline.stages.child" in p.cmdline()]
            killed.append(random.Random(0).choice(ranks[1:]).pid)
            os.kill(killed[0], signal.SIGKILL)
        return False

    monkeypatch.setattr(launch, "POLL_S", 0.01)
    with pytest.raises(launch.StageFailed):
        run_job(cut, stop=kill_a_rank)
    run_job(cut)
    assert outputs(cut.out) == outputs(reference.out)
