"""Architectures by name: build one, register our own with timm, freeze the first layers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import timm
from timm.models import group_parameters
from torch import nn

from pipeline.config import Scalar
from pipeline.errors import UserError, did_you_mean

M = TypeVar("M")


def build(
    architecture: str,
    num_classes: int,
    *,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    model_args: Mapping[str, Scalar] | None = None,
) -> nn.Module:
    """A model with random weights that maps images [B, 3, S, S] to logits [B, num_classes].

    Raises:
        UserError: the architecture is unknown (with the nearest name), or refuses an argument.
    """
    if not timm.is_model(architecture):
        raise UserError(f"`model`: timm has no architecture {architecture!r}, {suggest(architecture)}")
    arguments: dict[str, Scalar] = {**(model_args or {})}
    if dropout:
        arguments["drop_rate"] = dropout
    if stochastic_depth:
        arguments["drop_path_rate"] = stochastic_depth
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=num_classes, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"`model`: {architecture} cannot be built with {arguments}: {error}") from error
    if stochastic_depth and not any("DropPath" in type(m).__name__ for m in model.modules()):
        raise UserError(f"`stochastic_depth`: {architecture} has no residual paths to drop; set it to 0")
    return model


def list_own_models() -> list[str]:
    """The architectures that selftrain adds to timm."""
    return [m for m in timm.list_models() if _is_own(m)]


def set_trainable(model: nn.Module, frozen_layers: int) -> None:
    """Freeze the stem and the first `frozen_layers` blocks: no gradients, BatchNorm in eval mode.

    Call after `model.train()`, which would otherwise put the frozen BatchNorms back into train mode.
    """
    if not frozen_layers:
        return
    frozen = _frozen_parameters(model, frozen_layers)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        own = [f"{name}.{n}" if name else n for n, _ in module.named_parameters(recurse=False)]
        if own and all(n in frozen for n in own) and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def num_frozen(model: nn.Module) -> int:
    """Parameters without gradients."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def _frozen_parameters(model: nn.Module, frozen_layers: int) -> set[str]:
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError(f"`frozen_layers`: {type(model).__name__} does not describe its layers; set it to 0")
    layer_of = group_parameters(model, matcher(coarse=False), reverse=True)
    return {name for name, layer in layer_of.items() if int(layer) <= frozen_layers}


def _is_own(architecture: str) -> bool:
    entry = timm.model_entrypoint(architecture)
    module = inspect.getmodule(entry) or importlib.import_module(entry.__module__)
    return module.__name__.startswith("pipeline.")


def suggest(architecture: str) -> str:
    """The nearest name in timm, to append to an error message."""
    return did_you_mean(architecture, timm.list_models()) if len(architecture) > 3 else "see timm.list_models()"


def create(network: Callable[..., M], pretrained: bool, arguments: dict[str, Any]) -> M:
    """Build a network that has no pretrained weights. Raises ValueError when they are asked for."""
    if pretrained:
        raise ValueError("no pretrained weights exist for this architecture")
    of_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return network(**{name: value for name, value in arguments.items() if name not in of_timm})
