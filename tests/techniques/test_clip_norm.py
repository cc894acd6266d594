"""Clipping against its definition: g becomes g * min(1, c / |g|), over all gradients together (Pascanu 2013)."""

from __future__ import annotations

import math

import pytest
import torch
from support.toys import flat, mlp, network


@pytest.mark.parametrize("times", [0.0, 0.25, 4.0])
def test_clipping_scales_all_gradients_by_one_factor(times: float) -> None:
    """The bound is `times` the norm; 0 turns clipping off."""
    model = mlp(0)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    before = flat([p.grad for p in model.parameters() if p.grad is not None])
    norm = math.sqrt(sum(float(g) ** 2 for g in before))
    found = network(model, clip_norm=times * norm).clip()
    assert float(found) == pytest.approx(norm)  # what metrics.jsonl has: the norm before
    factor = min(1.0, times) if times else 1.0
    after = flat([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(after, before * factor)
