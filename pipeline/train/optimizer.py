"""Optimizers: timm's factory, with weight decay kept off biases and normalization parameters."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from pipeline.config import Optimizer


def make_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters; the learning rate is set by the loop before each step."""
    extra = {"betas": (config.momentum, 0.999)} if config.name in ("adamw", "lamb") else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt=config.name,  # timm's `sgd` is with Nesterov momentum
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        filter_bias_and_bn=True,  # no decay on vectors (Bag of Tricks, section 3.1)
        **extra,
    )
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
