"""The optimizers, from timm's factory; biases and normalization parameters do not decay, unless asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from pipeline.config import Optimizer

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sgd": {},  # timm's sgd has Nesterov momentum
    "rmsproptf": {"eps": 1e-3},  # inside the root, as in EfficientNet; timm's default is 1e-10
    "adamw": {},
    "lamb": {"max_grad_norm": None},  # timm's lamb would clip to 1; only clip_norm clips here
}


def make_optimizer(
    model: nn.Module, config: Optimizer, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of all trainable parameters. Each update sets its learning rate first.

    With `lr_scales`, parameter -> factor on its learning rate, parameters of one factor share a group. A step of many
    groups takes longer than one of two, by some milliseconds.
    """
    extra = _ARGUMENTS[config.name] | ({"betas": (config.momentum, 0.999)} if config.name in ("adamw", "lamb") else {})
    # Vectors do not decay (Bag of Tricks, section 3.1). Groups are made with a decay of 1, so any decay has the same.
    if config.decay_vectors:
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 1.0}
        ]
    else:
        groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=getattr(model, "no_weight_decay", set)())
    for group in groups:
        group["weight_decay"] *= config.weight_decay
    if lr_scales:
        groups = list(_split(groups, {parameter: lr_scales[name] for name, parameter in model.named_parameters()}))
    # timm's sgd has Nesterov momentum, which must be above 0; its `momentum` is plain sgd.
    name = "momentum" if config.name == "sgd" and config.momentum == 0 else config.name
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=name, lr=config.lr, weight_decay=0.0, momentum=config.momentum, **extra
    )
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the state of each parameter; hyperparameters stay those that the optimizer was made with.

    So a continued training obeys its own config, and not that of the training that it continues.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def restart(optimizer: torch.optim.Optimizer) -> None:
    """Forget the state of all parameters, and the number of steps, which lamb counts per group."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _split(groups: Iterable[dict[str, Any]], scale_of: Mapping[nn.Parameter, float]) -> Iterator[dict[str, Any]]:
    """Groups with the same settings, one per factor on the learning rate, which is named as in timm."""
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scale_of[parameter], []).append(parameter)
        for scale, parameters in parts.items():
            yield {**group, "params": parameters, "lr_scale": scale}
