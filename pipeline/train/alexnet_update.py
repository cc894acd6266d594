"""The update rule of AlexNet (Krizhevsky 2012, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class AlexNetUpdate(torch.optim.Optimizer):
    """v = momentum v - weight_decay lr w - lr g, then w = w + v.

    The rate is within the velocity, while `torch.optim.SGD` multiplies its velocity by the rate of the step. Both are
    the same as long as the rate is. When it falls, the velocity of AlexNet decays from what it was, and that of torch
    shrinks at once. The decay is part of the velocity, too.

    Args:
        params: Parameters, or groups of them, each with a `weight_decay` of its own if it is not the default.
        lr: The learning rate. The update of a step is with the rate of that step.
        momentum: What remains of the velocity per step.
        weight_decay: The weight decay, which is multiplied by the rate.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; parameters without a gradient stay. All tensors of a group are updated in four calls."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * group["lr"])
            torch._foreach_add_(velocities, [weight.grad for weight in weights], alpha=-group["lr"])
            torch._foreach_add_(weights, velocities)
        return loss
