"""The exponential moving average of the weights, which is evaluated, labels, and is saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """The average of every floating tensor of a model, BatchNorm statistics included; integers are copied.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short run does not end near its random start
    (Noisy Student's code; the average is from Tarvainen 2017, section 2).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """Move the average by one step: average <- d * average + (1 - d) * weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        # Tensors are looked up at every update, because Accelerate may replace buffers when it prepares a model.
        torch._foreach_lerp_(_floating(self.model), _floating(self._source), 1 - decay)
        for target, source in zip(_integers(self.model), _integers(self._source), strict=True):
            target.copy_(source)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _floating(model: nn.Module) -> list[Tensor]:
    return [t for t in _tensors(model) if t.is_floating_point()]


def _integers(model: nn.Module) -> list[Tensor]:
    return [t for t in _tensors(model) if not t.is_floating_point()]
