"""AlexNet's update against its formula in numpy, float64, and beside torch's, from which it differs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Optimizer
from pipeline.train.alexnet_update import AlexNetUpdate
from pipeline.train.optimizer import load_optimizer, make_optimizer, restart, set_lr

RATES = (0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.0001, 0.0001, 0.01, 0.01)
"""Ten updates at a rate that falls by a tenth, as on plateaus, and rises again."""


def take(model: nn.Linear, optimizer: torch.optim.Optimizer, rate: float) -> None:
    set_lr(optimizer, rate)
    for parameter in model.parameters():
        parameter.grad = parameter.detach() ** 3 - 1
    optimizer.step()


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def test_the_first_ten_updates_are_those_of_the_paper() -> None:
    """Section 5: v = 0.9 v - 0.0005 lr w - lr g; w = w + v. Biases have no decay."""
    model = linear()
    optimizer = make_optimizer(model, Optimizer(name="alexnet"))
    assert isinstance(optimizer, AlexNetUpdate)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    velocity = {name: np.zeros_like(w) for name, w in expected.items()}
    for rate in RATES:
        take(model, optimizer, rate)
        for name, w in expected.items():
            decay = 0.0005 if name == "weight" else 0.0
            velocity[name] = 0.9 * velocity[name] - decay * rate * w - rate * (w**3 - 1)
            expected[name] = w + velocity[name]
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-13)


def test_it_is_torchs_sgd_until_the_rate_changes() -> None:
    model, reference = linear(), linear()
    ours = make_optimizer(model, Optimizer(name="alexnet", weight_decay=0.0))
    theirs = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9)
    for number, rate in enumerate(RATES):
        take(model, ours, rate)
        take(reference, theirs, rate)
        assert torch.allclose(model.weight, reference.weight, rtol=1e-12, atol=0) == (number < 3)
        if number == 3:
            break


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_saved_goes_on_and_what_restarts_begins_anew(fresh: bool) -> None:
    model, other = linear(), linear()
    first, second = (make_optimizer(m, Optimizer(name="alexnet")) for m in (model, other))
    for rate in RATES[:4]:
        take(model, first, rate)
    other.load_state_dict(model.state_dict())
    if fresh:
        restart(first)
    else:
        load_optimizer(second, copy.deepcopy(first.state_dict()))
    for rate in RATES[4:]:
        take(model, first, rate)
        take(other, second, rate)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_what_has_no_gradient_stays() -> None:
    model = linear()
    optimizer, before = make_optimizer(model, Optimizer(name="alexnet")), model.weight.detach().clone()
    model.bias.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(model.weight, before)
    assert model.bias in optimizer.state
    assert model.weight not in optimizer.state
