"""The residual branches of a network, by what they end with."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn

_LAST_OF_BRANCH = ("conv3", "conv2", "conv_pwl", "fc2")
"""The names of the last layer of a branch, where blocks do not tell it: of bottlenecks, of blocks with two
convolutions, of inverted residuals, of the MLPs of transformers. The first that a block has counts."""

_DROPS = ("drop_path", "drop_path1", "drop_path2")
"""The attributes of what has residual branches, as timm names them, whether stochastic depth is on or not."""


class End(NamedTuple):
    """What a residual branch ends with."""

    layer: nn.Module
    """Its last convolution or linear layer."""
    weight: nn.Parameter | None
    """What all that it gives is multiplied by: the gamma after that layer, or else the layer's own weights; None if the
    block does not tell it."""


def branch_ends(model: nn.Module) -> list[End]:
    """The ends of all residual branches of a model, as far as they are known.

    A block tells them by what timm lets it set to 0: with its method `zero_init_last`, or as ByobNet's do with an
    argument of that name of `init_weights`. Of others the names of their layers do. No generator moves.
    """
    found: list[End] = []
    with torch.random.fork_rng(devices=[]):  # init_weights draws, too
        for block in model.modules():
            found += [*_told(block)] or _named(block)
    return found


def untold(model: nn.Module, ends: Iterable[End]) -> list[str]:
    """The names of the modules with residual branches of which no end tells what they are multiplied by."""
    known = {id(end.weight) for end in ends if end.weight is not None}
    return [
        name
        for name, block in model.named_modules()
        if any(hasattr(block, drop) for drop in _DROPS)
        and getattr(block, "shortcut", block) is not None  # ByobNet's blocks have None where they have no shortcut
        and known.isdisjoint(id(parameter) for parameter in block.parameters())
    ]


def _told(block: nn.Module) -> Iterator[End]:
    """The ends that a block sets to 0. What blocks are part of, as a whole model is, leaves it to them."""
    if not _tells(block) or any(_tells(part) for part in block.modules() if part is not block):
        return
    if _takes_zero(block):  # which sets more than the end to 0, such as the last layer of an attention
        zero = _zeros(block, "init_weights", zero_init_last=True) - _zeros(block, "init_weights", zero_init_last=False)
    else:
        zero = _zeros(block, "zero_init_last")
    layer: nn.Module = block
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = module
        yield from (End(layer, p) for own, p in module.named_parameters(recurse=False) if f"{name}.{own}" in zero)


def _tells(block: nn.Module) -> bool:
    return callable(getattr(block, "zero_init_last", None)) or _takes_zero(block)


def _takes_zero(block: nn.Module) -> bool:
    method = getattr(block, "init_weights", None)
    return callable(method) and "zero_init_last" in inspect.signature(method).parameters


@torch.no_grad()
def _zeros(block: nn.Module, method: str, **arguments: bool) -> set[str]:
    """The parameters that a method sets to 0 in a copy of a block, all of ones, which has values on the meta device
    too."""
    ones = copy.deepcopy(block).to_empty(device="cpu")
    for parameter in ones.parameters():
        parameter.fill_(1.0)
    ask: Callable[..., None] = getattr(ones, method)
    ask(**arguments)
    return {name for name, parameter in ones.named_parameters() if not parameter.any()}


def _named(block: nn.Module) -> list[End]:
    children = dict(block.named_children())
    name = next((name for name in _LAST_OF_BRANCH if isinstance(children.get(name), nn.Conv2d | nn.Linear)), None)
    is_residual = hasattr(block, "drop_path") or hasattr(block, "shortcut")
    if name is None or not (is_residual or isinstance(children[name], nn.Linear)):  # an MLP's shortcut is outside of it
        return []
    return [End(children[name], None)]
