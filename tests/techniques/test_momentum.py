"""sgd against Nesterov's momentum as Sutskever 2013 writes it (eq. 3 and 4), and against torch's classical one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import Optimizer, parse, semantic
from pipeline.errors import UserError
from pipeline.train.optimizer import make_optimizer

LR = 0.05


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_at_the_point_that_nesterov_looks_ahead_to(momentum: float) -> None:
    """The paper takes its gradient at theta + mu v. PyTorch stores this point, and we with it.

    Without momentum both are plain gradient descent.
    """
    model = nn.Linear(3, 2, bias=False).double()
    optimizer = make_optimizer(model, Optimizer(lr=LR, momentum=momentum, weight_decay=0.0))
    target = torch.arange(6.0, dtype=torch.float64).view(2, 3)

    def gradient(weight: torch.Tensor) -> torch.Tensor:
        return weight**3 - target

    theta, velocity = model.weight.detach().clone(), torch.zeros(2, 3, dtype=torch.float64)
    for _ in range(6):
        velocity = momentum * velocity - LR * gradient(theta + momentum * velocity)
        theta = theta + velocity
        model.weight.grad = gradient(model.weight.detach())
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), theta + momentum * velocity)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_without_nesterov_sgd_is_torchs_classical_momentum(momentum: float) -> None:
    """At a rate that changes, with weight decay."""
    model, reference = (nn.Linear(3, 2, bias=False).double() for _ in range(2))
    reference.load_state_dict(model.state_dict())
    ours = make_optimizer(model, Optimizer(lr=LR, momentum=momentum, nesterov=False, weight_decay=0.1))
    theirs = torch.optim.SGD(reference.parameters(), lr=LR, momentum=momentum, weight_decay=0.1, nesterov=False)
    for step in range(6):
        for net, optimizer in ((model, ours), (reference, theirs)):
            optimizer.param_groups[-1]["lr"] = LR / (step + 1)
            net.weight.grad = net.weight.detach() ** 3 - 1
            optimizer.step()
    torch.testing.assert_close(model.weight, reference.weight)
    assert "nesterov" not in semantic(Optimizer()), "the momentum of all runs until now changes no fingerprint"


def test_only_sgd_has_nesterovs_momentum_to_turn_off() -> None:
    with pytest.raises(UserError, match=r"nesterov is false, but adamw has no Nesterov momentum; drop it, or set name"):
        parse(Optimizer, {"name": "adamw", "nesterov": False}, "x")
