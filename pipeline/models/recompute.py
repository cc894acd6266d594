"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from pipeline.errors import UserError

_NONE = -1
"""The number of the running backward pass where there is none."""


def checkpoint_gradients(model: nn.Module) -> None:
    """Let a model keep the inputs of its blocks only, and compute the rest again (Chen 2016). No bit of a training
    changes: dropout draws the same again, and BatchNorm counts each batch once.

    Raises:
        UserError: the architecture cannot do that.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:  # timm asserts; others lack the method
        raise UserError(
            f"`gradient_checkpointing`: {type(model).__name__} cannot compute its activations again; set it to false, "
            "and raise accumulation to save memory"
        ) from error
    for module in model.modules():
        if isinstance(module, BatchNorm):
            _count_once(module)


def _count_once(norm: BatchNorm) -> None:
    """Keep a BatchNorm's statistics in a backward pass, where a forward pass is a repeated one.

    A momentum of 0 does that by the same operations, so the repeated pass saves the same tensors for the gradient.
    """
    forward = norm.forward

    def counted_once(x: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() == _NONE:
            return forward(x)
        momentum, number = norm.momentum, norm.num_batches_tracked
        before = None if number is None else number.clone()
        norm.momentum = 0.0
        try:  # torch ends the pass by an exception as soon as it has what it needs
            return forward(x)
        finally:
            norm.momentum = momentum
            if number is not None and before is not None:
                number.copy_(before)

    norm.forward = counted_once  # type: ignore[assignment]
