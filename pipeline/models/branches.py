"""The residual branches of a network, by what they end with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

_LAST_OF_BRANCH = ("conv3", "conv2", "conv_pwl", "fc2")
"""The names of the last layer of a branch, where blocks do not tell it: of bottlenecks, of blocks with two
convolutions, of inverted residuals, of the MLPs of transformers. The first that a block has counts."""


class End(NamedTuple):
    """What a residual branch ends with."""

    layer: nn.Module
    """Its last convolution or linear layer."""
    weight: nn.Parameter | None
    """What all that it gives is multiplied by: the gamma after that layer, or else the layer's own weights; None if the
    block does not tell it."""


def branch_ends(model: nn.Module) -> list[End]:
    """The ends of all residual branches of a model, as far as they are known.

    A block that has `zero_init_last`, as timm calls it, tells them. Of others the names of their layers do.
    """
    found: list[End] = []
    for block in model.modules():
        found += [*_told(block)] or _named(block)
    return found


@torch.no_grad()
def _told(block: nn.Module) -> Iterator[End]:
    """The ends that a block sets to 0. A copy of it is asked, all of ones, which has values on the meta device too."""
    if not callable(getattr(block, "zero_init_last", None)):
        return
    ones = copy.deepcopy(block).to_empty(device="cpu")
    for parameter in ones.parameters():
        parameter.fill_(1.0)
    ones.zero_init_last()  # type: ignore[operator]
    zero = {name for name, parameter in ones.named_parameters() if not parameter.any()}
    layer: nn.Module = block
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = module
        yield from (End(layer, p) for own, p in module.named_parameters(recurse=False) if f"{name}.{own}" in zero)


def _named(block: nn.Module) -> list[End]:
    children = dict(block.named_children())
    name = next((name for name in _LAST_OF_BRANCH if isinstance(children.get(name), nn.Conv2d | nn.Linear)), None)
    is_residual = hasattr(block, "drop_path") or hasattr(block, "shortcut")
    if name is None or not (is_residual or isinstance(children[name], nn.Linear)):  # an MLP's shortcut is outside of it
        return []
    return [End(children[name], None)]
