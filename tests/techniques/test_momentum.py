"""sgd against Nesterov's momentum as Sutskever 2013 writes it (eq. 3 and 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import Optimizer
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
