"""Architectures by name: how to build one, and how to register one with timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import timm
from timm.models import register_model as register_model  # for plugins
from torch import nn

from pipeline.config import Scalar
from pipeline.errors import UserError, did_you_mean
from pipeline.models.alterations import alter, split_args
from pipeline.stages.plugins import sources_of

M = TypeVar("M")


_NOT_OF_A_NETWORK = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("scriptable", "exportable", "no_jit", "features_only", "in_chans", "num_classes"),
}
"""What timm.create_model takes for other uses. `checkpoint_path` would unpickle a file, and so run what is in it."""
_NOT_OF_A_NETWORK_FIX = "drop it (weights to start from are `start.model`, images have three channels)"


def build(
    architecture: str,
    num_classes: int,
    *,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    model_args: Mapping[str, Scalar] | None = None,
) -> nn.Module:
    """A model with random weights that maps images [B, 3, S, S] to logits [B, num_classes].

    `model_args` are arguments of the architecture, and alterations of it (models/alterations.py).

    Raises:
        UserError: the architecture is unknown (with the nearest name), or refuses an argument.
    """
    if not timm.is_model(architecture):
        known = suggest(architecture)
        raise UserError(f"`model`: timm has no architecture {architecture!r}, {known}; a plugin's needs its --plugin")
    arguments, alterations = split_args(model_args or {})
    if taken := sorted(_NOT_OF_A_NETWORK & arguments.keys()):
        raise UserError(
            f"`model_args`: {taken[0]} is no argument of a network that classifies images; {_NOT_OF_A_NETWORK_FIX}"
        )
    rates = {"drop_rate": ("dropout", dropout), "drop_path_rate": ("stochastic_depth", stochastic_depth)}
    arguments |= {name: rate for name, (_, rate) in rates.items() if rate}
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=num_classes, **arguments)
    except (
        Exception
    ) as error:  # arguments of the wrong kind make timm raise nearly anything, from KeyError to TypeError
        if key := next((key for name, (key, rate) in rates.items() if rate and f"'{name}'" in str(error)), None):
            raise UserError(f"`{key}`: {architecture} has none; set it to 0, or choose another model") from error
        raise UserError(f"`model`: {architecture} cannot be built with {arguments}: {error}") from error
    if stochastic_depth and not any("DropPath" in type(m).__name__ for m in model.modules()):
        raise UserError(f"`stochastic_depth`: {architecture} has no residual paths to drop; set it to 0")
    alter(model, alterations)
    return model


def list_own_models() -> list[str]:
    """The architectures that selftrain adds to timm."""
    return [m for m in timm.list_models() if module_of(m).startswith("pipeline.")]


def module_of(architecture: str) -> str:
    """The module that registered an architecture with timm."""
    return str(timm.model_entrypoint(architecture).__module__)


def import_of(architecture: str) -> str | None:
    """The module whose import makes timm know an architecture; None for timm's own, and for one that it does not
    know."""
    module = module_of(architecture) if timm.is_model(architecture) else "timm"
    return {"timm": None, "pipeline": "pipeline.models"}.get(module.partition(".")[0], module)


def is_known(architecture: str) -> bool:
    """Whether timm knows an architecture, here and now."""
    return bool(timm.is_model(architecture))


def plugins_of(architecture: str) -> dict[str, str]:
    """File name -> digest of the plugins that define an architecture; empty for timm's and ours."""
    return sources_of(module_of(architecture)) if timm.is_model(architecture) else {}


def suggest(architecture: str) -> str:
    """The nearest name in timm, as the end of an error message."""
    hint = did_you_mean(architecture, timm.list_models())
    return hint if hint.startswith("did you mean") else "see timm.list_models()"  # there are over a thousand


def create(network: Callable[..., M], pretrained: bool, arguments: dict[str, Any]) -> M:
    """Build a network that has no pretrained weights. Raises ValueError when they are asked for."""
    if pretrained:
        raise ValueError("no pretrained weights exist for this architecture")
    of_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return network(**{name: value for name, value in arguments.items() if name not in of_timm})
