"""Trainings that depart gently from the weights that they start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.processes import outputs, run, signal_at, train_job
from support.ranks import in_two, run_ranks

from pipeline.config import Config, Start, Training
from pipeline.models.format import read_state
from pipeline.models.weights import semantic_settings
from pipeline.stages.jobs import TrainJob

pytestmark = pytest.mark.process

Tuned = Callable[..., TrainJob]


@pytest.fixture
def tuned(digits: Config, teacher: Path, tmp_path: Path) -> Tuned:
    """Makes the job of a training that starts from the teacher."""

    def make(name: str = "train", **changes: object) -> TrainJob:
        values = {**digits.teacher.model_dump(), "start": Start(model=str(teacher)), "steps": 20, **changes}
        return train_job(digits, tmp_path / name, training=Training.model_validate(values))

    return make


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_leaves_frozen_batchnorm_to_the_bit(tuned: Tuned, teacher: Path, processes: int) -> None:
    job = tuned(freeze_norm=True)
    if processes == 2:
        job = in_two(job, job.out.parent, "two")
        assert run_ranks(job) == [0, 0]
    else:
        run(job)
    before, after = read_state(teacher), read_state(job.out)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if "norm" in name}


@pytest.mark.parametrize(
    "changes", [{"freeze_norm": True, "layer_decay": 0.5, "head_lr": 4.0, "optimizer": {"name": "lamb", "lr": 0.01}}]
)
def test_resume_is_bit_exact_with(tuned: Tuned, changes: dict[str, object]) -> None:
    whole, cut = tuned("whole", **changes), tuned("cut", **changes)
    signal_at(cut, 10)
    assert outputs(run(cut)) == outputs(run(whole))


def test_only_the_runs_whose_frozen_layers_dropped_paths_have_other_fingerprints(tuned: Tuned) -> None:
    def extra(**changes: object) -> bool:
        return "frozen_layers_drop" in semantic_settings(tuned(**changes).training)

    assert extra(frozen_layers=1, stochastic_depth=0.1)
    assert extra(frozen_layers=1, model_args={"drop_path_rate": 0.1})
    assert not extra(frozen_layers=1)
    assert not extra(stochastic_depth=0.1)
