"""Dropout against its definition: a feature is zero or divided by the probability that it stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.models import build

RATE = 0.3


@pytest.mark.parametrize(("name", "scale"), [("wide_resnet10_1", 1.0), ("resnet9", 9.0), ("resnet10t", 1.0)])
def test_dropout_zeroes_a_share_of_the_last_features_and_scales_the_others(name: str, scale: float) -> None:
    """With the last layer taken away, the head gives the pooled features themselves (resnet9's, divided by 9)."""
    model = build(name, 10, dropout=RATE)
    model.fc = nn.Identity()
    maps = torch.rand(200, model.num_features, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    pooled = maps.amax((2, 3)) if name == "resnet9" else maps.mean((2, 3))
    torch.manual_seed(0)
    seen = model.train().forward_head(maps) * scale
    dropped = seen == 0
    torch.testing.assert_close(seen, torch.where(dropped, 0.0, pooled / (1 - RATE)))
    deviation = (RATE * (1 - RATE) / dropped.numel()) ** 0.5
    assert abs(float(dropped.float().mean()) - RATE) < 5 * deviation
    torch.testing.assert_close(model.eval().forward_head(maps) * scale, pooled)
