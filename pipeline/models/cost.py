"""The cost of a model: its parameters, and its operations per image."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Scalar
from pipeline.models.format import ModelInfo
from pipeline.models.registry import build


class Cost(NamedTuple):
    """What a model costs its users."""

    parameters: int
    flops: int
    """The operations of all matrix products and convolutions for one image; a multiplication and an addition are two.
    """


def cost_of(info: ModelInfo) -> Cost:
    """The cost of the model that a model.json describes. It takes no weights."""
    return cost_at(info.architecture, len(info.classes), info.input_size, tuple(info.model_args.items()))


@functools.cache
def cost_at(
    architecture: str, num_classes: int, input_size: tuple[int, int, int], model_args: tuple[tuple[str, Scalar], ...]
) -> Cost:
    """The cost of a network on images of a size: channels, height and width. It takes no weights."""
    try:
        return _count(architecture, num_classes, input_size, dict(model_args), "meta")
    except (RuntimeError, NotImplementedError):  # code that looks at values cannot run on the meta device
        return _count(architecture, num_classes, input_size, dict(model_args), "cpu")


def _count(
    architecture: str, num_classes: int, input_size: tuple[int, int, int], model_args: dict[str, Scalar], on: str
) -> Cost:
    with torch.random.fork_rng(devices=[]), torch.device(on):
        model = build(architecture, num_classes, model_args=model_args).eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *input_size))
    return Cost(sum(p.numel() for p in model.parameters()), int(counter.get_total_flops()))
