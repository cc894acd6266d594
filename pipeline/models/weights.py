"""The weights that a network starts from: another model's, a file's or timm's, as `start` of the config names them."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from pipeline.config import NetworkSettings, Start, Training, semantic
from pipeline.errors import UserError
from pipeline.models.alterations import ALTERATIONS, split_args
from pipeline.models.format import has_info, model_digest, read_info, read_state
from pipeline.models.insertion import insert
from pipeline.models.layers import classifiers
from pipeline.models.preprocessing import without_arrays
from pipeline.models.registry import module_of, plugins_of, suggest

log = logging.getLogger("selftrain.models")

TIMM = "timm:"
"""Prefix of `start.model` that names pretrained weights of timm."""
_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What a repository of timm's weights calls them."""


def semantic_settings(settings: NetworkSettings) -> dict[str, Any]:
    """The semantic form of a network's settings. A file to start from stands there as its digest, not as its path, and
    an architecture from a plugin adds the plugin's digest."""
    values, start = {**semantic(settings), **plugins_of(settings.model)}, settings.start
    if settings.frozen_layers and (settings.stochastic_depth or any("drop" in name for name in settings.model_args)):
        values["frozen_layers_drop"] = False  # they did in earlier versions, whose fingerprints are others
    teacher = distilled_from(settings)
    if teacher is not None:
        values["distillation"]["model"] = model_digest(teacher)
    if start is not None:
        is_file = not start.model.startswith(TIMM)
        values["start"] = {"mode": start.mode, "model": model_digest(Path(start.model)) if is_file else start.model}
    return values


def start_inputs(settings: NetworkSettings) -> dict[str, str]:
    """The start among the inputs of a stage, if it is a file: {"start": digest}."""
    start = settings.start
    return {} if start is None or start.model.startswith(TIMM) else {"start": model_digest(Path(start.model))}


def distilled_from(settings: NetworkSettings) -> Path | None:
    """The model that a training distills, if it names one. It stands in fingerprints as its digest, as a start does."""
    found = settings.distillation if isinstance(settings, Training) else None
    return Path(found.model) if found is not None and found.model is not None else None


def files_read(settings: NetworkSettings) -> Iterator[tuple[str, Path]]:
    """Yield (key, path) of each model that a training reads: what it starts from, and what it distills."""
    if settings.start is not None and not settings.start.model.startswith(TIMM):
        yield "start.model", Path(settings.start.model)
    if (teacher := distilled_from(settings)) is not None:
        yield "distillation.model", teacher


def load_start(model: nn.Module, settings: NetworkSettings, classes: Sequence[str] = ()) -> None:
    """Load the weights of `settings.start`, if it is set. `classes` are the model's own, in order.

    Raises:
        UserError: there is no such model, or its weights do not fit.
    """
    if settings.start is None:
        return
    source = settings.start.model
    info = read_info(Path(source)) if tells_itself(settings.start) else None
    if settings.start.mode == "insert":
        state: Mapping[str, Tensor] = insert(model, start_state(source), info, source)
    else:
        state = adapted(start_state(source), model, settings)
    if settings.start.begins_anew:
        _tell_of_another_function(settings, settings.start)
        if classes and info is not None:
            state = with_classes(model, state, source, info.classes, classes)
        init_from(model, state, source, allow_random=settings.start.allow_random)
        return
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"`start.model`: {source} does not fit {settings.model} {settings.model_args or ''} of "
            f"{model.num_classes} classes; set model and model_args to what it was trained as, or use mode: init"
        ) from error


def _tell_of_another_function(settings: NetworkSettings, start: Start) -> None:
    """Warn if weights were trained with another activation or pooling than they meet here. timm's had the
    architecture's own."""
    theirs = read_info(Path(start.model)).model_args if tells_itself(start) else {}
    for name in ALTERATIONS:
        here, there = (values.get(name, "the architecture's own") for values in (settings.built_with, theirs))
        if here != there:
            log.warning("start.model: %s was trained with %s %s, and here it is %s", start.model, name, there, here)


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
        return without_arrays(read_state(Path(source)))
    name = source.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"`start.model`: timm has no architecture {name!r}, {suggest(name)}")
    try:
        _tell_of_a_download(name)
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"`start.model`: the weights of {source} cannot be had ({error}); where there is no network, get the "
            "file elsewhere and set start.model to its path; timm.list_pretrained() names all that have weights"
        ) from error
    return state


def _tell_of_a_download(name: str) -> None:
    """Say that timm is about to download these weights: without a network it tries for minutes in silence."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or constants.HF_HUB_OFFLINE:
        return
    files = (*filter(None, [config.hf_hub_filename]), *_FILES)
    if not any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
        log.warning("start.model: timm downloads %s%s now; without a network it tries for minutes", TIMM, name)


def adapted(state: Mapping[str, Tensor], model: nn.Module, settings: NetworkSettings) -> Mapping[str, Tensor]:
    """The weights as timm fits them to the model when it loads pretrained ones.

    It resamples position embeddings and tables of relative positions to the model's size, and takes the names that the
    weights had where they were published. Weights that fit stay as they are.

    Raises:
        UserError: timm cannot make anything of them.
    """
    if not _random_of(model, state):
        return state
    if (fit := _filter_of(settings)) is None:
        return state
    try:
        fitted: Mapping[str, Tensor] = fit(dict(state), model) if _takes_two(fit) else fit(dict(state))
    except Exception as error:  # weights of another architecture make it raise nearly anything
        assert settings.start is not None
        raise UserError(
            f"`start.model`: timm cannot fit {settings.start.model} to {settings.model} ({type(error).__name__}: "
            f"{error}); set model and model_args to what it was trained as, or drop start"
        ) from error
    return fitted


def _filter_of(settings: NetworkSettings) -> Callable[..., Mapping[str, Tensor]] | None:
    """What timm fits pretrained weights of this architecture with; None without it.

    timm has no table of these functions: an architecture hands its own to `load_pretrained`, which is listened to here.
    """
    if not module_of(settings.model).startswith("timm."):
        return None
    found: list[Callable[..., Mapping[str, Tensor]] | None] = []

    def listen(model: nn.Module, **given: Any) -> None:
        found.append(given["filter_fn"])

    with mock.patch.object(timm.models._builder, "load_pretrained", listen), torch.device("meta"):
        timm.create_model(settings.model, pretrained=True, **split_args(settings.model_args)[0])
    return found[0]


def _takes_two(function: Callable[..., object]) -> bool:
    """Whether a filter takes the model beside the weights."""
    return len(inspect.signature(function).parameters) > 1


def init_from(model: nn.Module, state: Mapping[str, Tensor], source: str, *, allow_random: bool = False) -> int:
    """Copy the weights whose names and shapes agree; returns how many tensors were copied.

    A classifier for another number of classes stays as it is. With `allow_random` other weights may stay at random,
    too, and a warning names them.

    Raises:
        UserError: nothing agrees, or weights before the classifier would stay at random and may not.
    """
    own = model.state_dict()
    matching = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if missing := _random_of(model, state):
        num_missing = sum(own[k].numel() for k in missing)
        share = math.floor(100 - 100 * num_missing / (num_missing + sum(v.numel() for v in matching.values())))
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        if not matching or not allow_random:
            raise UserError(
                f"`start.model`: {source} has {share}% of the weights of this {type(model).__name__} (not: {some}); "
                "set model and model_args to what it was trained as, set start.allow_random to true to train the rest "
                "from scratch, or drop start"
            )
        log.warning("start.model: %s lacks %s, which stay at random (start.allow_random)", source, some)
    model.load_state_dict(matching, strict=False)
    return len(matching)


def with_classes(
    model: nn.Module, state: Mapping[str, Tensor], source: str, theirs: Sequence[str], ours: Sequence[str]
) -> Mapping[str, Tensor]:
    """The weights whose classifier knows `ours`, in their order: rows belong to classes by name, not by place.

    With other classes a classifier has nothing to give. It is left out, also where its shape would fit, and a warning
    says so.

    Raises:
        UserError: its rows would have to move, and the model does not say which layer is its classifier.
    """
    if tuple(theirs) == tuple(ours) or len(theirs) != len(ours):  # another number of classes has another shape
        return state
    heads, num_classes = classifiers(model), len(ours)
    if not heads:
        raise UserError(
            f"`start.model`: {source} knows other classes, or in another order ({', '.join(theirs[:5])}, ...), and "
            f"{type(model).__name__} does not say which layer is its classifier; give it get_classifier, or drop start"
        )
    rows = {name for name, t in state.items() if name.rpartition(".")[0] in heads and t.shape[:1] == (num_classes,)}
    if set(theirs) != set(ours):
        log.warning("start.model: %s knows other classes, so the classifier begins at random", source)
        return {name: tensor for name, tensor in state.items() if name not in rows}
    order = [list(theirs).index(name) for name in ours]
    return {name: tensor[order] if name in rows else tensor for name, tensor in state.items()}


def check_finite(model: nn.Module, settings: NetworkSettings) -> None:
    """Refuse weights and statistics that are not finite: their average would be no number.

    Raises:
        UserError: the start has some, or the architecture is built with some.
    """
    values = {name: t for name, t in model.state_dict().items() if t.is_floating_point() and not t.is_meta}
    if bad := [name for name, t in values.items() if not torch.isfinite(t).all()]:
        what = f"`start.model`: {settings.start.model}" if settings.start else f"`model`: a new {settings.model}"
        raise UserError(f"{what} has numbers that are not finite, such as {bad[0]}; choose another (docs/models.md)")


def _random_of(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """The weights and statistics of a model that a state has nothing for, without the classifier."""
    own, heads = model.state_dict(), classifiers(model)
    slopes = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.PReLU)}
    return [
        name
        for name, tensor in own.items()
        if (name not in state or state[name].shape != tensor.shape)
        and tensor.is_floating_point()
        and name not in slopes  # which begin as He 2015 says, not at random
        and name.rpartition(".")[0] not in heads
        and not _has_other_classes(model, tensor, state.get(name))
    ]


def _has_other_classes(model: nn.Module, own: Tensor, other: Tensor | None) -> bool:
    """Whether `own` belongs to the classifier and differs from `other` in the number of classes only."""
    num_classes = getattr(model, "num_classes", None)
    return other is not None and own.shape[:1] == (num_classes,) and own.shape[1:] == other.shape[1:]
