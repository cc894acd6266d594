"""A training that stops early is one that ran to its end, cut where val had no new best for long enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import outputs, run, signal_at, train_job
from support.ranks import in_two, run_ranks

from pipeline.config import Config, Training
from pipeline.files import read_json
from pipeline.report.record import TrainRecord
from pipeline.stages.folder import read_record
from pipeline.stages.jobs import TrainJob
from pipeline.train.flops import flops_of

pytestmark = pytest.mark.process

PATIENCE = 2
CHANGES: dict[str, Any] = {
    **{"steps": 120, "evaluations": 40, "keep": "best", "warmup_steps": 0, "ema_decay": 0.8},
    "optimizer": {"lr": 1.0},  # so high that val stalls now and then
}


def make(digits: Config, out: Path, **changes: Any) -> TrainJob:
    training = Training.model_validate({**digits.teacher.model_dump(), **CHANGES, **changes})
    return train_job(digits, out, training=training)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def first_stall(evaluations: list[dict[str, Any]], best: float = -1.0) -> int:
    """Prechelt's rule, written down again: the step of the first evaluation after so many without a new best."""
    without = 0
    for line in evaluations:
        without = 0 if line["val_top1"] > best else without + 1
        best = max(best, line["val_top1"])
        if without == PATIENCE:
            return int(line["step"])
    raise AssertionError("it never stalls: choose another seed")


@pytest.fixture(scope="module")
def whole(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training to its end."""
    return run(make(digits, tmp_path_factory.mktemp("early") / "whole"))


def test_it_stops_where_val_stalls_with_the_lines_and_the_best_weights_until_there(
    digits: Config, whole: Path, tmp_path: Path
) -> None:
    evaluations = [line for line in lines(whole) if "val_top1" in line]
    end = first_stall(evaluations)
    assert end < 120
    job = make(digits, tmp_path / "early", early_stop=PATIENCE)
    out = run(job)
    found, expected = lines(out), [line for line in lines(whole) if line["step"] <= end]
    assert [line for line in found if "val_top1" in line] == [line for line in expected if "val_top1" in line]
    assert found[: len(expected)] == expected
    assert found[-1]["step"] == end, "the steps since the last line are logged, too"
    said = read_json(out / "stage.json")["outputs"]
    best = max((line for line in evaluations if line["step"] <= end), key=lambda line: line["val_top1"])
    assert (said["steps"], said["best_step"], said["stopped_early"]) == (end, best["step"], True)
    assert torch.load(out / "checkpoints/best.pt", weights_only=True)["step"] == best["step"]
    shown = read_json(out / "progress.json")
    assert (shown["done"], shown["total"]) == (end, end)
    assert TrainRecord(out, read_record(out), "teacher", 0).stopped_early == f"stopped early, at step {end} of 120"
    timing = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()]
    assert sum(line["images"] for line in timing) == end * job.training.batch_size
    assert "stopped_early" not in read_json(whole / "stage.json")["outputs"]


@pytest.mark.slow
def test_it_stops_at_the_same_step_after_kills_and_in_two_ranks(digits: Config, tmp_path: Path) -> None:
    whole, cut = (make(digits, tmp_path / name, early_stop=PATIENCE) for name in ("whole", "cut"))
    end = read_json(run(whole) / "stage.json")["outputs"]["steps"]
    for step in (end - 3, end):
        signal_at(cut, step)
    assert outputs(run(cut)) == outputs(whole.out)
    two = in_two(whole, tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    assert read_json(two.out / "stage.json")["outputs"]["stopped_early"]


@pytest.mark.parametrize("thaw_steps", [0, 30])
def test_evaluations_before_a_thaw_do_not_count(digits: Config, tmp_path: Path, thaw_steps: int) -> None:
    """At a rate of nothing the first evaluation is the best one."""
    still = {"optimizer": {"lr": 1e-12}, "early_stop": PATIENCE, "thaw_steps": thaw_steps, "ema_decay": 0.0}
    job = make(digits, tmp_path / "still", freeze_norm=True, **still)
    assert read_json(run(job) / "stage.json")["outputs"]["steps"] == {0: 9, 30: 36}[thaw_steps]


@pytest.mark.slow
def test_a_continued_training_counts_from_its_own_beginning(digits: Config, whole: Path, tmp_path: Path) -> None:
    """The evaluations of the training that it continues are not its own, but their best one is to be beaten."""
    more = {"steps": 240, "evaluations": 80, "early_stop": PATIENCE}
    job = make(digits, tmp_path / "more", start={"model": str(whole), "mode": "continue"}, **more)
    signal_at(job, 125)
    best = read_json(whole / "stage.json")["outputs"]["best_top1"]
    steps = read_json(run(job) / "stage.json")["outputs"]["steps"]
    assert steps == first_stall([line for line in lines(job.out) if "val_top1" in line], best)


@pytest.mark.slow
def test_operations_are_those_of_the_steps_that_were_taken(digits: Config, tmp_path: Path) -> None:
    """Before a thaw there is no backward pass through the network, which is two thirds of a step."""
    plain, thawing = make(digits, tmp_path / "a"), make(digits, tmp_path / "b", thaw_steps=30)
    step = flops_of(plain, 1)
    assert flops_of(plain, 20) == 20 * step
    assert flops_of(plain, 0) == 0
    frozen = flops_of(thawing, 30) // 30
    assert 0.3 * step < frozen < 0.4 * step
    assert flops_of(thawing, 50) == 30 * frozen + 20 * step
