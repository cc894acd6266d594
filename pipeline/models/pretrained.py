"""Pretrained weights as a user names them, with the network that they are of and the images that they expect."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import nn

from pipeline.config import Scalar, Start
from pipeline.errors import UserError
from pipeline.models.format import find_weights, has_info, read_info
from pipeline.models.input import input_of
from pipeline.models.registry import build, suggest
from pipeline.models.weights import TIMM

_EXAMPLE = "timm:tf_efficientnet_lite0.in1k"
_LARGE = 256
"""Above this side in pixels an encoder of a fixed size is asked to take `_SMALLER` images, if it can."""
_SMALLER = 224


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights, and the network that they are of."""

    start: str
    """What `start.model` of the config says."""
    model: str
    image_size: int
    """The side of the images that the weights expect."""
    model_args: dict[str, Scalar] = field(default_factory=dict)
    source: str = ""
    """Where timm downloads the weights from; empty for a file."""
    num_outputs: int = 2
    """The classes that the weights know."""

    def build(self) -> nn.Module:
        """The network as its weights are, as shapes without memory."""
        with torch.device("meta"):
            return build(self.model, self.num_outputs, model_args=self.model_args)

    @property
    def has_fixed_size(self) -> bool:
        """Whether it takes images of one size only."""
        config = timm.get_pretrained_cfg(self.model)
        return bool(config and config.fixed_input_size)


def find_pretrained(text: str) -> Pretrained:
    """What `timm:NAME` or a path stands for. Nothing is downloaded.

    Raises:
        UserError: there is none, or a file does not say which network its weights are of.
    """
    if text.startswith(TIMM):
        return _of_timm(text.removeprefix(TIMM))
    path = Path(text)
    if not path.exists():
        hint = (
            f"did you mean `{TIMM}{text}`?" if timm.is_model(text) else f"give a file, or timm:NAME, such as {_EXAMPLE}"
        )
        raise UserError(f"--encoder {text} does not exist; {hint}")
    if has_info(path):
        info = read_info(path)
        return Pretrained(text, info.architecture, info.input_size[-1], info.model_args)
    name = find_weights(path).stem
    if not timm.is_model(name):
        raise UserError(
            f"--encoder {text} does not say which network its weights are of; call the file as timm does, such as "
            f"{_EXAMPLE.removeprefix(TIMM)}{path.suffix}"
        )
    model = name.partition(".")[0]
    if name not in timm.list_pretrained(model):
        return Pretrained(text, model, _SMALLER)
    found = _of_timm(name)
    return Pretrained(text, found.model, found.image_size, found.model_args)


def _of_timm(name: str) -> Pretrained:
    if not timm.is_model(name):
        raise UserError(f"--encoder {TIMM}{name}: timm has no architecture of that name; {suggest(name)}")
    model, _, tag = name.partition(".")
    names = timm.list_pretrained(model)
    if not names or (tag and name not in names):
        fix = f"there are: {', '.join(TIMM + one for one in names[:6])}" if names else "choose another"
        raise UserError(f"--encoder {TIMM}{name}: timm has no such pretrained weights; {fix}")
    config = timm.get_pretrained_cfg(name)
    size = int(input_of(Start(model=TIMM + name), model)["image_size"])
    fits = config.fixed_input_size and size > _LARGE
    return Pretrained(
        start=TIMM + name,
        model=model,
        image_size=_SMALLER if fits else size,
        model_args={"img_size": _SMALLER} if fits else {},
        source=config.hf_hub_id or config.url,
        num_outputs=max(config.num_classes, 1),
    )
