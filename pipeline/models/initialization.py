"""The random weights that a network begins with, in place of its architecture's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.config import Init, NetworkSettings
from pipeline.errors import UserError
from pipeline.models.branches import branch_ends, untold

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
_ALEXNET_STD = 0.01


def initialize(model: nn.Module, settings: NetworkSettings) -> None:
    """Give a new network the weights that `init` and `zero_gamma` ask for, drawn from torch's generator.

    `init` changes the weights and biases of all convolutions and linear layers. Everything else stays as the
    architecture makes it: normalization, embeddings, tokens, factors of layers.

    Raises:
        UserError: the architecture does not have what they are about.
    """
    if settings.zero_gamma is False:  # before `init`, which may draw convolutions that it draws, too
        undo_zero_gamma(model)
    if settings.init is not None:
        draw_weights(model, settings.init)
    if settings.zero_gamma:
        zero_gamma(model)


# --------------------------------------------------------------------------------------------------------------- init


@torch.no_grad()
def draw_weights(model: nn.Module, init: Init) -> None:
    """Draw the weights of all convolutions and linear layers anew. Biases become `bias`, which is 0 unless it is given
    (CS231n, "Initializing the biases"), and with `alexnet` 1 in some layers.

    Raises:
        UserError: the architecture has no such layers, for a `bias` none with biases before the classifier, or for
            `alexnet` others than AlexNet's.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers:
        raise UserError(f"`init`: {type(model).__name__} has no convolution or linear layer; drop it")
    if init.bias and sum(layer.bias is not None for layer in layers) < 2:  # that of a classifier moves all its scores
        raise UserError(f"`init.bias`: {type(model).__name__} has no biases before its classifier; drop it")
    ones = _alexnets_ones(model, layers) if init.name == "alexnet" else []
    for layer in layers:
        _draw(layer, init)
        if layer.bias is not None:
            layer.bias.fill_(1.0 if any(layer is one for one in ones) else init.bias)


def fans(layer: Layer) -> tuple[int, int]:
    """The number of inputs that an output of a layer sums over, and that of the outputs that an input is part of.

    Of a convolution in groups, each input is part of the outputs of its group only.
    """
    groups, size = getattr(layer, "groups", 1), math.prod(layer.weight.shape[2:])
    return layer.weight.shape[1] * size, layer.weight.shape[0] // groups * size


def _draw(layer: Layer, init: Init) -> None:
    weight, (fan_in, fan_out) = layer.weight, fans(layer)
    if init.name == "gaussian":
        weight.normal_(0.0, init.std)
    elif init.name == "xavier":
        bound = math.sqrt(6 / (fan_in + fan_out))
        weight.uniform_(-bound, bound)
    elif init.name == "kaiming":
        weight.normal_(0.0, math.sqrt(2 / (fan_in if init.fan == "in" else fan_out)))
    elif init.name == "alexnet":
        weight.normal_(0.0, _ALEXNET_STD)
    else:
        weight.fill_(init.value if init.name == "constant" else 0.0)


def _alexnets_ones(model: nn.Module, layers: Sequence[Layer]) -> list[Layer]:
    """The layers whose biases begin at 1, so that their ReLUs begin with positive inputs: the second, fourth and fifth
    convolution and the hidden linear layers, in the order in which the model lists them (Krizhevsky 2012, section 5).

    Raises:
        UserError: the model has not five convolutions and then three linear layers, all with biases.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    if (len(convolutions), len(linear)) != (5, 3) or any(layer.bias is None for layer in layers):
        without = sum(layer.bias is None for layer in layers)
        raise UserError(
            f"`init`: alexnet is for five convolutions and three linear layers with biases; {type(model).__name__} has "
            f"{len(convolutions)} and {len(linear)}, {without} of them without; set init to gaussian"
        )
    return [*(convolutions[number - 1] for number in (2, 4, 5)), *linear[:-1]]


# --------------------------------------------------------------------------------------------------------- zero gamma


@torch.no_grad()
def zero_gamma(model: nn.Module) -> None:
    """Set the last layer of each residual branch to 0, so that the network begins as its shortcuts alone (Goyal 2017,
    section 5.1; Bag of Tricks, section 3.1).

    It is the gamma of a BatchNorm where the branch ends with one, as in ResNets and resnet9, whose activation after it
    maps 0 to 0. In networks with pre-activation, such as wide_resnet and resnetv2, the branch ends with a convolution,
    and its weights become 0. The convolution before a gamma of 0 has no gradient in the first step, and what is before
    a convolution of 0 has none either; both learn from the second step on.

    Raises:
        UserError: the architecture does not say what its residual branches end with.
    """
    for weight in _last_weights(model, "true"):
        weight.zero_()


@torch.no_grad()
def undo_zero_gamma(model: nn.Module) -> None:
    """Let each residual branch begin with a gamma of 1, or with a last convolution of He-normal weights (fan out).

    Raises:
        UserError: the architecture does not say what its residual branches end with.
    """
    for weight in _last_weights(model, "false"):
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _last_weights(model: nn.Module, value: str) -> list[nn.Parameter]:
    """What the branches of a model are multiplied by, as their blocks tell it. Raises UserError if some do not."""
    ends = branch_ends(model)
    found = [end.weight for end in ends if end.weight is not None]
    architecture = type(model).__name__
    if not found:
        raise UserError(
            f"`zero_gamma`: {architecture} has no residual branches, or does not say what they end with, so it cannot "
            f"be {value}; drop it"
        )
    if silent := untold(model, ends):
        raise UserError(
            f"`zero_gamma`: {architecture} has {len(silent)} blocks with residual branches that do not say what they "
            f"end with, such as {silent[0]}, so it cannot be {value} for all; drop it"
        )
    return found
