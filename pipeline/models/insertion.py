"""Insertion: a deeper PolyNet starts from a smaller one that was trained (Zhang 2017, "PolyNet", section 4).

Modules of the smaller network are copied, and new modules and paths are put between and beside them. Here every new
path ends in a BatchNorm of gamma 0 (Goyal 2017, section 5.1), so it adds exactly 0, and a new module is ReLU of
features that are not negative: the deeper network begins as the very function of the smaller one, where the paper's new
blocks begin at random.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.activations import is_activation
from pipeline.models.format import ModelInfo
from pipeline.models.initialization import zero_gamma
from pipeline.models.poly_inception import KINDS
from pipeline.models.polynet import PolyNet
from pipeline.models.registry import build


def insert(model: nn.Module, state: Mapping[str, Tensor], info: ModelInfo | None, source: str) -> dict[str, Tensor]:
    """All weights of a PolyNet that begins as the function of a smaller one.

    What is new stays as it was initialized, but for the gammas that end its paths, which are 0.

    Args:
        model: The deeper network.
        state: The weights of the smaller one.
        info: What the smaller one says of itself; None if it says nothing.
        source: Its name in messages.

    Raises:
        UserError: one of the two is no PolyNet or has another activation than ReLU, the smaller one does not say which
            modules it has, or they are of another form or have no place among the new ones.
    """
    if info is None:
        raise UserError(
            f"`start.model`: {source} does not say which modules it has, so nothing can be inserted between them; take "
            "a run, a stage, a checkpoint or an exported file, or use mode: init"
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        other = build(info.architecture, len(info.classes), model_args=info.model_args)
    if not isinstance(model, PolyNet) or not isinstance(other, PolyNet):
        raise UserError(
            f"`start.mode`: insert puts modules between those of a PolyNet, but here {type(other).__name__} is to "
            f"start {type(model).__name__}; set model to polynet or polynet_small, or use mode: init"
        )
    for network, whose in ((model, "the network"), (other, source)):
        if others := {type(part).__name__ for part in network.modules() if is_activation(part)} - {"ReLU"}:
            raise UserError(
                f"`activation`: that of {whose} is {others.pop()}, but with start.mode: insert new modules change "
                "nothing at first, which only ReLU of what a ReLU gave does; start from a network with ReLU, and set "
                "activation to null, or use mode: init"
            )
    for key, value in model.form.items():
        if other.form[key] != value:
            raise UserError(
                f"`model_args`: {key} is {value:g}, but that of {source} is {other.form[key]:g}, so its modules "
                f"cannot be copied; set model_args.{key} to {other.form[key]:g}, or drop start"
            )
    inserted = {name: tensor for name, tensor in state.items() if not name.startswith("stages.")}
    zero_gamma(model)
    own = model.state_dict()
    for stage, (old, new) in enumerate(zip(other.kinds, model.kinds, strict=True)):
        found = places(old, new)
        if found is None:
            key = f"stage_{'abc'[stage]}"
            raise UserError(
                f"`model_args.{key}`: {', '.join(new)} has no place for the modules of {source}, which are "
                f"{', '.join(old)}, in their order; keep each, or one with more paths of its family, and add others"
            )
        number_of = {place: number for number, place in enumerate(found)}
        for name, tensor in own.items():
            if match := re.fullmatch(rf"stages\.{stage}\.(\d+)\.(.+)", name):
                theirs = f"stages.{stage}.{number_of.get(int(match[1]))}.{match[2]}"
                inserted[name] = state.get(theirs, tensor)
    return inserted


def places(old: Sequence[str], new: Sequence[str]) -> list[int] | None:
    """The index in `new` of each module of `old`: in their order, and spread as evenly as the kinds allow.

    A module fits where its polynomial is a part of the new one. So twice as many modules alternate, an old one first.
    None if there is no room for all.
    """

    @functools.cache
    def best(i: int, j: int) -> tuple[int, tuple[int, ...]] | None:
        """The shifts and places of old[i:] in new[j:], of the smallest sum of shifts."""
        if i == len(old):
            return 0, ()
        if j == len(new):
            return None
        options = [best(i, j + 1)]
        if KINDS[new[j]].holds(KINDS[old[i]]) and (rest := best(i + 1, j + 1)) is not None:
            options.append((abs(j * len(old) - i * len(new)) + rest[0], (j, *rest[1])))
        return min((option for option in options if option is not None), default=None)

    found = best(0, 0)
    return None if found is None else list(found[1])
