"""The exponential moving average of the weights: what is evaluated, what labels, what is saved."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """Averages every floating tensor of a model, BatchNorm statistics included; integers are copied.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not end near its
    random start (Noisy Student's code).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source = model

    @torch.no_grad()
    def update(self) -> None:
        """One step: average <- d * average + (1 - d) * weights."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        # Looked up at every update: Accelerate may replace a model's buffers when it prepares it.
        torch._foreach_lerp_(_floating(self.model), _floating(self._source), 1 - decay)
        for target, source in zip(_integers(self.model), _integers(self._source), strict=True):
            target.copy_(source)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _floating(model: nn.Module) -> list[Tensor]:
    return [t for t in _tensors(model) if t.is_floating_point()]


def _integers(model: nn.Module) -> list[Tensor]:
    return [t for t in _tensors(model) if not t.is_floating_point()]
