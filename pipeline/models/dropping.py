"""Dropout at several places of a network, and DropConnect. They act in training, where their draws come from torch's
generators, which are reseeded for each forward pass; and dropout, as any, in samples of predictions (mc_dropout.py)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import NetworkSettings
from pipeline.errors import UserError, did_you_mean
from pipeline.models.branches import branch_ends
from pipeline.models.layers import classifiers


def add_dropping(model: nn.Module, settings: NetworkSettings) -> nn.Module:
    """Let a network drop what its settings say; returns it. Names and values of its weights stay as they are.

    Raises:
        UserError: the network has no such place.
    """
    add_dropout(model, settings.block_dropout, settings.dropout_at)
    if settings.drop_connect:
        drop_connections(model, settings.drop_connect)
    return model


def add_dropout(model: nn.Module, block_dropout: float, places: Mapping[str, float]) -> None:
    """Let a network drop values at these places, beside those that its architecture has. Raises UserError as above."""
    if block_dropout:
        drop_in_blocks(model, block_dropout)
    drop_at(model, places)


def drop_in_blocks(model: nn.Module, rate: float) -> None:
    """Drop values before the last layer of each residual branch, as in wide residual networks (Zagoruyko 2016, 2.4).

    Raises:
        UserError: the network has no residual branch that is known here.
    """
    layers = dict.fromkeys(end.layer for end in branch_ends(model))
    if not layers:
        raise UserError(
            f"`block_dropout`: {type(model).__name__} has no residual branches that are known here; set it to 0, or "
            "name the places in dropout_at"
        )
    for layer in layers:
        layer.register_forward_pre_hook(partial(_drop_input, rate))


def drop_at(model: nn.Module, places: Mapping[str, float]) -> None:
    """Drop values of what modules give, with a probability per pattern of their names, such as `layer3.*.act1`.

    A module that several patterns name has the probability of the last one.

    Raises:
        UserError: no module has such a name.
    """
    rates: dict[str, float] = {}
    names = [name for name, _ in model.named_modules() if name]
    for pattern, rate in places.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            hint = did_you_mean(pattern, names)
            shown = hint if hint.startswith("did you mean") else f"there are {', '.join(names[:5])} and others"
            raise UserError(f"`dropout_at`: {type(model).__name__} has no module {pattern!r}, {shown}")
        rates |= dict.fromkeys(matching, rate)
    for name, rate in rates.items():
        model.get_submodule(name).register_forward_hook(partial(_drop_output, rate))


# In eval mode dropout gives back what it is given, unless predictions are sampled, which turns all dropout on.


def _drop_input(rate: float, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return F.dropout(inputs[0], rate, module.training), *inputs[1:]


def _drop_output(rate: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return F.dropout(output, rate, module.training)


class DropConnect(nn.Linear):
    """A linear layer that drops single weights and biases in training, others for each image (Wan 2013, section 3.1).

    What stays is divided by the probability that it does, so that in evaluation it is the linear layer itself: the
    output with the mean weights. Wan (section 3.2) draws outputs from a normal distribution of the same mean and
    averages what an activation makes of them; before a softmax, of which the surest class is taken, the mean is left.
    """

    rate: float

    @classmethod
    def of(cls, layer: nn.Linear, rate: float) -> DropConnect:
        """A layer with the same weights."""
        new = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        new.weight, new.bias, new.rate = layer.weight, layer.bias, rate
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Features [B, D] -> outputs [B, C]. In training it holds B C D masked weights."""
        if not self.training:
            return super().forward(input)
        rows = input.shape[:-1]
        weights = F.dropout(self.weight.expand(*rows, *self.weight.shape), self.rate)
        outputs = torch.einsum("...d,...cd->...c", input, weights)
        return outputs if self.bias is None else outputs + F.dropout(self.bias.expand(*rows, -1), self.rate)


def drop_connections(model: nn.Module, rate: float) -> None:
    """Let the classifier of a network drop weights.

    Raises:
        UserError: its classifier is no plain linear layer.
    """
    linear = [name for name in classifiers(model) if type(model.get_submodule(name)) is nn.Linear]
    if not linear:
        raise UserError(
            f"`drop_connect`: {type(model).__name__} has no classifier of one linear layer; set it to 0, or choose "
            "another model"
        )
    for name in linear:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, DropConnect.of(model.get_submodule(name), rate))  # type: ignore[arg-type]
