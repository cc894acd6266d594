"""UDA on real digits: exact resume, any number of ranks, and what a step measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.processes import method_job, outputs, run, signal_at
from support.ranks import in_two, run_ranks
from support.tiny_net import register

from pipeline.config import Config, changed
from pipeline.train.schedule import lr_at

pytestmark = pytest.mark.process


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(uda_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbed."""
    return run(method_job(uda_config, tmp_path_factory.mktemp("uda") / "whole"))


def test_metrics_show_both_losses_and_the_schedule(uda_config: Config, whole: Path) -> None:
    losses = [line for line in lines(whole) if "loss" in line]
    assert [line["step"] for line in losses] == list(range(5, 41, 5))
    for line in losses:
        assert line["lr"] == lr_at(line["step"] - 1, uda_config.student, steps=40, num_images=32)
        assert {"labeled_loss", "uda_loss", "labeled_top1", "grad_norm"} <= set(line)
        assert 0 <= line["mask_rate"] <= 1
    assert losses[-1]["labeled_loss"] < losses[0]["labeled_loss"]


def test_resume_is_bit_exact_after_kill(uda_config: Config, whole: Path, tmp_path: Path) -> None:
    job = method_job(uda_config, tmp_path / "cut")
    for step in (15, 25):
        assert signal_at(job, step, 0.02) == -9
    assert outputs(run(job)) == outputs(whole)


def test_two_ranks_equal_one_process(uda_config: Config, tmp_path: Path) -> None:
    plain = {"model": "selftrain_tiny", "model_args": {}, "dropout": 0.0, "steps": 20}  # no BatchNorm, no dropout
    one = method_job(changed(uda_config, student=changed(uda_config.student, **plain)), tmp_path / "one")
    run(one, register)
    two = in_two(one, tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    for first, second in zip(lines(one.out), lines(two.out), strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-6)
    first, second = (load_file(job.out / "model.safetensors") for job in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)
