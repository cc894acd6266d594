"""The recipes of AlexNet's and PolyNet's papers, which no machine here can run in full, can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.command import ROOT
from support.learners import learner_of
from support.processes import train_job
from torch import nn

from pipeline.config import Config, Training, load_config, parse
from pipeline.methods import METHODS
from pipeline.models import build
from pipeline.runs.dry_run import check_networks
from pipeline.train.optimizer import make_optimizer

SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"width": 0.125, "grid": 2, "stride": 1},
    "polynet": {"stage_a": "2-way", "stage_b": "poly-3 2-way", "stage_c": "poly-3", "width": 0.05, "stem_stride": 2},
}
"""Recipe -> arguments that make its network small enough for a step here, at 32 pixels."""


def recipe(name: str) -> Path:
    return ROOT / "configs" / f"{name}.yaml"


@pytest.mark.parametrize("name", SMALL)
def test_the_network_of_a_recipe_takes_a_step_and_is_evaluated_at_its_size(name: str) -> None:
    """In full, without values: architecture, initialization, optimizer, and the patches of the evaluation."""
    config = load_config(recipe(name))
    check_networks(config, METHODS[config.method], 1000)
    with torch.device("meta"):
        model = build(config.teacher.model, 1000, model_args=config.teacher.built_with)
    optimizer = make_optimizer(model, config.teacher.optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == len([*model.parameters()])


@pytest.mark.parametrize("name", SMALL)
def test_a_training_takes_a_step_by_a_recipe(name: str, digits: Config, tmp_path: Path) -> None:
    """With values: its crops, preprocessing, initialization, loss, rate and update, on a small network."""
    asked = yaml.safe_load(recipe(name).read_text())["teacher"]
    args = {**asked.get("model_args", {}), **SMALL[name]}
    own = {key: value for key, value in digits.teacher.model_dump(mode="json").items() if key not in ("mean", "std")}
    raw = {**own, **asked, "model_args": args, "image_size": 32, "batch_size": 16}
    learner = learner_of(train_job(digits, tmp_path, training=parse(Training, raw, "test")))
    batch = next(iter(learner.batches.from_step(0, 1)))
    model = learner.model.raw_model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    learner.update(3, [batch])
    after = [parameter.detach() for parameter in model.parameters()]
    assert all(bool(parameter.isfinite().all()) for parameter in after)
    assert sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) > len(after) / 2


def test_polynets_statistics_are_averaged_as_those_of_inception_v4() -> None:
    """Its authors' code keeps 0.9997 of the averages per step, which torch calls a momentum of 0.0003, and has an
    epsilon of 0.001. PolyNet's paper does not differ."""
    args = load_config(recipe("polynet")).teacher.built_with
    torch.manual_seed(0)
    model = build("polynet", 10, model_args={**args, **SMALL["polynet"]}).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.0003, 0.001)}
    inputs: dict[nn.Module, torch.Tensor] = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, x: inputs.update({norm: x[0].detach().double()}))
    model(torch.randn(4, 3, 32, 32))
    assert len(inputs) == len(norms) > 20
    for norm, x in inputs.items():
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        torch.testing.assert_close(norm.running_mean, (0.9997 * 0 + 0.0003 * mean).float())
        torch.testing.assert_close(norm.running_var, (0.9997 * 1 + 0.0003 * variance).float())
