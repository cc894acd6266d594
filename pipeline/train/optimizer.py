"""Optimizers: timm's factory, with weight decay kept off biases and normalization parameters."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from pipeline.config import Optimizer

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sgd": {},  # timm's is with Nesterov momentum
    "rmsproptf": {"eps": 1e-3},  # inside the root; EfficientNet's, where timm's is 1e-10
    "adamw": {},
    "lamb": {"max_grad_norm": None},  # timm's clips to 1 by itself; clip_norm is the one place that clips
}


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters; the learning rate is set by the loop before each step."""
    extra = _ARGUMENTS[config.name] | ({"betas": (config.momentum, 0.999)} if config.name in ("adamw", "lamb") else {})
    # No decay on vectors (Bag of Tricks, section 3.1). Grouped by a decay of 1, so that any decay has the same groups.
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=getattr(model, "no_weight_decay", set)())
    for group in groups:
        group["weight_decay"] *= config.weight_decay
    # timm's sgd is with Nesterov momentum, which there is none of at 0.
    name = "momentum" if config.name == "sgd" and config.momentum == 0 else config.name
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=name, lr=config.lr, weight_decay=0.0, momentum=config.momentum, **extra
    )
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what a state remembers of each parameter; hyperparameters stay those that the optimizer was made with.

    So a continued training obeys its own config and not that of the training it continues.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
