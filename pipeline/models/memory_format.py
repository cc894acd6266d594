"""The memory layout of images in a network: channels last, except where torch fails at it."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

_FEW = 16
"""Channels below which the fault was seen: 2 to 15 crashed, 1, 16, 24 and 32 did not."""


def channels_last(model: M, device: torch.device) -> M:
    """Move a model to a device, in the layout in which convolutions are fastest.

    On CPUs and in fp32, torch 2.13 writes outside of its memory in the weight gradient of a 1x1 convolution with stride
    above 1 that sees few channels, channels last, at many sizes from 64 pixels on (RepVGG, MobileOne and FastViT begin
    with one): the process dies by signal 11 or 6, at once or later (docs/log.md). Such a convolution gets the pixels
    that it would look at and has no stride, which is the same.
    """
    moved: M = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        for module in moved.modules():
            if isinstance(module, nn.Conv2d) and _is_struck(module):
                module.register_forward_pre_hook(partial(_thin_out, module.stride))
                module.stride = (1, 1)
    return moved


def _is_struck(conv: nn.Conv2d) -> bool:
    looks_at_single_pixels = set(conv.kernel_size) == {1} and conv.padding in (0, (0, 0))
    return looks_at_single_pixels and max(conv.stride) > 1 and conv.in_channels < _FEW


def _thin_out(stride: tuple[int, ...], _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0][:, :, :: stride[0], :: stride[1]], *inputs[1:])
