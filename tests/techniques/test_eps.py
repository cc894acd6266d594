"""eps and decay of the optimizers with second moments, against their formulas in numpy, float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import Optimizer, parse, semantic
from pipeline.errors import UserError
from pipeline.train.optimizer import make_optimizer, set_lr

RATES = (0.45, 0.45, 0.045, 0.045, 0.0045)
"""PolyNet's: 0.45, a tenth every so many steps."""


def steps_of(optimizer: Optimizer) -> tuple[np.ndarray, list[np.ndarray]]:
    """The weights of a matrix before its first step and after each one. The gradient at w is w^3 - 1."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    made, weights = make_optimizer(model, optimizer), [model.weight.detach().numpy().copy()]
    for rate in RATES:
        set_lr(made, rate)
        model.weight.grad = model.weight.detach() ** 3 - 1
        made.step()
        weights.append(model.weight.detach().numpy().copy())
    return weights[0], weights[1:]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("decay", "eps"), [(0.9, 1.0), (0.99, 1e-3)])
def test_rmsprop_is_tensorflows(momentum: float, decay: float, eps: float) -> None:
    """ms = decay ms + (1 - decay) g^2, which begins at 1; mom = momentum mom + lr g / sqrt(ms + eps); w = w - mom."""
    w, found = steps_of(Optimizer(name="rmsproptf", momentum=momentum, weight_decay=0.01, decay=decay, eps=eps))
    ms, mom = np.ones_like(w), np.zeros_like(w)
    for rate, weights in zip(RATES, found, strict=True):
        g = w**3 - 1 + 0.01 * w
        ms = decay * ms + (1 - decay) * g**2
        mom = momentum * mom + rate * g / np.sqrt(ms + eps)
        w = w - mom
        np.testing.assert_allclose(weights, w, rtol=1e-12)


def test_adamw_has_eps_and_decay_of_its_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2: eps stands beside the root."""
    w, found = steps_of(Optimizer(name="adamw", momentum=0.8, weight_decay=0.0, decay=0.9, eps=0.5))
    m, v = np.zeros_like(w), np.zeros_like(w)
    for number, (rate, weights) in enumerate(zip(RATES, found, strict=True), start=1):
        g = w**3 - 1
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - rate * (m / (1 - 0.8**number)) / (np.sqrt(v / (1 - 0.9**number)) + 0.5)
        np.testing.assert_allclose(weights, w, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "key", "defaults"),
    [
        ("rmsproptf", "alpha", (1e-3, 0.9)),
        ("adamw", "betas", (1e-8, (0.9, 0.999))),
        ("lamb", "betas", (1e-6, (0.9, 0.999))),
    ],
)
def test_without_the_keys_each_optimizer_has_its_own(name: Any, key: str, defaults: tuple[object, object]) -> None:
    made = make_optimizer(nn.Linear(2, 2), Optimizer(name=name))
    assert {(group["eps"], group[key]) for group in made.param_groups} == {defaults}
    assert not {"eps", "decay"} & semantic(Optimizer(name=name)).keys()


@pytest.mark.parametrize("name", ["sgd", "alexnet"])
@pytest.mark.parametrize("key", ["eps", "decay"])
def test_an_optimizer_without_second_moment_refuses_them(name: str, key: str) -> None:
    with pytest.raises(
        UserError, match=rf"{key} is 0\.5, which {name} does not read; drop it, or set name to rmsproptf"
    ):
        parse(Optimizer, {"name": name, key: 0.5}, "x")
