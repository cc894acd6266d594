"""Stochastic depth against its definition: an image skips a block's residual branch, or gets it scaled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.models import build

RATE, IMAGES = 0.4, 400


class Nothing(nn.Module):
    """A branch that is never taken."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("name", "blocks", "channels"), [("wide_resnet10_1", "blocks", 32), ("resnet9", "stages", 128)]
)
def test_a_dropped_block_leaves_the_shortcut_and_a_kept_one_is_scaled(name: str, blocks: str, channels: int) -> None:
    last = list(build(name, 10, stochastic_depth=RATE).get_submodule(blocks))[-1].train()
    images = torch.randn(IMAGES, channels, 4, 4, generator=torch.Generator().manual_seed(0))

    def with_branch(drop_path: nn.Module) -> Tensor:
        block = copy.deepcopy(last)
        block.drop_path = drop_path
        return block(images)

    shortcut, whole = with_branch(Nothing()), with_branch(nn.Identity())
    torch.manual_seed(0)
    seen = last(images)
    dropped = (seen == shortcut).flatten(1).all(1)
    expected = torch.where(dropped[:, None, None, None], shortcut, shortcut + (whole - shortcut) / (1 - RATE))
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert abs(float(dropped.float().mean()) - RATE) < 5 * (RATE * (1 - RATE) / IMAGES) ** 0.5
