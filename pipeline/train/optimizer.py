"""The optimizers, of timm and AlexNet's; biases and normalization parameters do not decay, unless asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

import pipeline.models  # noqa: F401 - it lets timm be imported
from pipeline.config import Optimizer
from pipeline.train.alexnet_update import AlexNetUpdate

from timm.optim import create_optimizer_v2, param_groups_weight_decay  # isort: skip - after pipeline.models

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sgd": {},
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
    # Vectors do not decay (Bag of Tricks, section 3.1). So it is with AlexNet's rule: its paper decays "w", and its
    # author's cuda-convnet no biases. Groups are made with a decay of 1, so any decay has the same.
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
    if config.name == "alexnet":
        return AlexNetUpdate(groups, lr=config.lr, momentum=config.momentum)
    # timm's sgd has Nesterov momentum, which must be above 0; its `momentum` has the classical one, which may be 0.
    plain = config.name == "sgd" and (config.momentum == 0 or not config.nesterov)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups,
        opt="momentum" if plain else config.name,
        lr=config.lr,
        weight_decay=0.0,
        momentum=config.momentum,
        **_arguments(config),
    )
    return optimizer


def _arguments(config: Optimizer) -> dict[str, Any]:
    """What timm's factory is told beside rate, decay and momentum."""
    arguments = dict(_ARGUMENTS[config.name])
    if config.name in ("adamw", "lamb"):
        arguments["betas"] = (config.momentum, 0.999 if config.decay is None else config.decay)
    elif config.decay is not None:
        arguments["alpha"] = config.decay
    if config.eps is not None:
        arguments["eps"] = config.eps
    return arguments


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
