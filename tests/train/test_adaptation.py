"""Trainings that depart gently from the weights that they start from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from support.learners import learner_of, make_job
from support.processes import outputs, run, signal_at, train_job
from support.ranks import in_two, run_ranks
from support.tiny_net import register

from pipeline.config import Config, Start, Training, changed
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


LAMB = {"freeze_norm": True, "layer_decay": 0.5, "head_lr": 4.0, "optimizer": {"name": "lamb", "lr": 0.01}}


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        (LAMB, [10]),
        ({"thaw_steps": 10, "optimizer": {"name": "lamb", "lr": 0.01}}, [5, 10, 15]),
        ({"thaw_steps": 8, "stochastic_depth": 0.2}, [5, 10]),
    ],
)
def test_resume_is_bit_exact_with(tuned: Tuned, changes: dict[str, object], at: list[int]) -> None:
    """Killed before a network thaws, at that step, and after it."""
    whole, cut = tuned("whole", **changes), tuned("cut", **changes)
    for step in at:
        signal_at(cut, step)
    assert outputs(run(cut)) == outputs(run(whole))


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_thaw_as_one_process_does(digits: Config, tmp_path: Path, accumulation: int) -> None:
    """DDP must not wait for gradients that frozen layers do not get, and must share them from the thaw on."""
    plain = {"model": "selftrain_tiny", "model_args": {}, "steps": 12, "thaw_steps": 7, "accumulation": accumulation}
    one = train_job(digits, tmp_path / "one", training=changed(digits.teacher, **plain))
    two = in_two(one, tmp_path, "two")
    assert run_ranks(two) == [0, 0]
    expected, found = read_state(run(one, register)), read_state(two.out)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_only_the_runs_whose_frozen_layers_dropped_paths_have_other_fingerprints(tuned: Tuned) -> None:
    def extra(**changes: object) -> bool:
        return "frozen_layers_drop" in semantic_settings(tuned(**changes).training)

    assert extra(frozen_layers=1, stochastic_depth=0.1)
    assert extra(frozen_layers=1, model_args={"drop_path_rate": 0.1})
    assert not extra(frozen_layers=1)
    assert not extra(stochastic_depth=0.1)


GENTLE = {"thaw_steps": 2, "layer_decay": 0.7, "head_lr": 5.0, "freeze_norm": True, "stochastic_depth": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["student", "uda", "uda, weak views apart", "fixmatch", "meta, exact", "meta, adjuster"]
)
def test_the_learner_of_every_method_trains_gently(
    digits: Config, labels: Path, selection: Path, tmp_path: Path, variant: str
) -> None:
    """Before the thaw only classifiers move, and with it all but BatchNorm."""
    job = make_job(digits, labels, selection, variant, tmp_path, device="cpu", **GENTLE)
    learner = learner_of(job)
    networks = [network for network in learner.networks.values() if network.info is not None]
    before = [copy.deepcopy(network.raw_model.state_dict()) for network in networks]
    for step in range(3):
        for network in learner.networks.values():
            network.train_mode(step)
        learner.update(step, islice(learner.batches.from_step(step, step + 1), 1))
        for network, start in zip(networks, before, strict=True):
            now = network.raw_model.state_dict()
            moved = {name.rpartition(".")[0] for name, value in now.items() if not torch.equal(value, start[name])}
            layers = {name.rpartition(".")[0] for name in now if "norm" not in name}
            assert moved == ({"fc"} if step < 2 else layers)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["student", "uda, weak views apart", "fixmatch", "meta, exact"])
def test_gradient_checkpointing_changes_no_bit_of_any_method(
    digits: Config, labels: Path, selection: Path, tmp_path: Path, variant: str
) -> None:
    def after_two_steps(*, checkpointed: bool) -> dict[str, torch.Tensor]:
        network = {"model": "test_efficientnet", "model_args": {}, "gradient_checkpointing": checkpointed}
        job = make_job(digits, labels, selection, variant, tmp_path, device="cpu", **network)
        learner = learner_of(job)
        for step in range(2):
            learner.update(step, islice(learner.batches.from_step(step, step + 1), 1))
        nets = learner.networks.items()
        return {f"{name}.{key}": value for name, net in nets for key, value in net.raw_model.state_dict().items()}

    plain, checkpointed = after_two_steps(checkpointed=False), after_two_steps(checkpointed=True)
    assert {key for key, value in plain.items() if not torch.equal(value, checkpointed[key])} == set()
