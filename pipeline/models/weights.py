"""The weights that a network starts from: another model's, a file's or timm's, as `start` of the config names them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from pipeline.config import NetworkSettings, Start, semantic
from pipeline.errors import UserError
from pipeline.models.format import has_info, model_digest, read_state
from pipeline.models.registry import plugins_of, suggest

log = logging.getLogger("selftrain.models")

TIMM = "timm:"
"""Prefix of `start.model` that names pretrained weights of timm."""
MIN_SHARE = 0.9
"""Smallest share of the weights before the classifier that must match."""


def semantic_settings(settings: NetworkSettings) -> dict[str, Any]:
    """The semantic form of a network's settings. A file to start from stands there as its digest, not as its path, and
    an architecture from a plugin adds the plugin's digest."""
    values, start = {**semantic(settings), **plugins_of(settings.model)}, settings.start
    if start is not None:
        is_file = not start.model.startswith(TIMM)
        values["start"] = {"mode": start.mode, "model": model_digest(Path(start.model)) if is_file else start.model}
    return values


def start_inputs(settings: NetworkSettings) -> dict[str, str]:
    """The start among the inputs of a stage, if it is a file: {"start": digest}."""
    start = settings.start
    return {} if start is None or start.model.startswith(TIMM) else {"start": model_digest(Path(start.model))}


def load_start(model: nn.Module, settings: NetworkSettings) -> None:
    """Load the weights of `settings.start`, if it is set.

    Raises:
        UserError: there is no such model, or its weights do not fit.
    """
    if settings.start is None:
        return
    source = settings.start.model
    state = start_state(source)
    if settings.start.mode == "init":
        init_from(model, state, source)
        return
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"`start.model`: {source} does not fit {settings.model} {settings.model_args or ''} of "
            f"{model.num_classes} classes; set model and model_args to what it was trained as, or use mode: init"
        ) from error


def tells_itself(start: Start) -> bool:
    """Whether the start says what it is; timm's weights do not."""
    return not start.model.startswith(TIMM) and has_info(Path(start.model))


def start_state(source: str) -> dict[str, Tensor]:
    """The weights that a training starts from. `source` is a run folder, a stage folder, a file, a
    checkpoint or `timm:NAME`.

    Raises:
        UserError: there are no such weights, or timm cannot download them.
    """
    if not source.startswith(TIMM):
        return read_state(Path(source))
    name = source.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"`start.model`: timm has no architecture {name!r}, {suggest(name)}")
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"`start.model`: the weights of {source} cannot be had ({error}); where there is no network, get the "
            "file elsewhere and set start.model to its path; timm.list_pretrained() names all that have weights"
        ) from error
    return state


def init_from(model: nn.Module, state: Mapping[str, Tensor], source: str) -> int:
    """Copy the weights whose names and shapes agree; returns how many tensors were copied.

    A classifier for another number of classes stays as it is. A warning names other weights that the source lacks.

    Raises:
        UserError: under 90% of the weights before the classifier agree, so the source has another architecture.
    """
    own = model.state_dict()
    matching = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing = [k for k in own if k not in matching and not _is_classifier(model, own[k], state.get(k))]
    num_missing = sum(own[k].numel() for k in missing)
    share = 1 - num_missing / max(num_missing + sum(v.numel() for v in matching.values()), 1)
    some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    if share < MIN_SHARE:
        raise UserError(
            f"`start.model`: {source} has {share:.0%} of the weights of this {type(model).__name__} (not: {some}); set "
            "model and model_args to what it was trained as, or start from scratch"
        )
    if missing:
        log.warning("start.model: %s lacks %s, which stay at random", source, some)
    model.load_state_dict(matching, strict=False)
    return len(matching)


def _is_classifier(model: nn.Module, own: Tensor, other: Tensor | None) -> bool:
    """Whether `own` belongs to the classifier and differs from `other` in the number of classes only."""
    num_classes = getattr(model, "num_classes", None)
    return other is not None and own.shape[:1] == (num_classes,) and own.shape[1:] == other.shape[1:]
