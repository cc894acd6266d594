"""PolyNet (Zhang 2017, "PolyNet: A Pursuit of Structural Diversity in Very Deep Networks", section 3.3): stages A, B
and C of PolyInception modules, with the stem and reductions of Inception-ResNet-v2 (Szegedy 2016, figures 3, 7, 18)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import did_you_mean
from pipeline.models.classifier import Classifier
from pipeline.models.poly_inception import INCEPTIONS, KINDS, ConvNorm, Norm, PolyInception
from pipeline.models.registry import create

Scaled = Callable[[int], int]
"""The channels of a layer of PolyNet -> those of the same layer of a network that is narrower."""
_GROUP = re.compile(r"(?P<kinds>[a-z0-9-]+(?:\s+[a-z0-9-]+)*?)(?:\s+x\s+(?P<times>\d+))?")


def parse_stage(text: str) -> list[str]:
    """The kinds of the modules of a stage, in order, as `model_args` say them in one line.

    `2-way x 10` is ten modules, `poly-3 2-way x 10` ten pairs, and a comma stands between groups: `ir x 2, 3-way`.

    Raises:
        ValueError: a group is no such thing, or names an unknown kind.
    """
    kinds: list[str] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None:
            raise ValueError(f"{group.strip()!r} in {text!r} is no group of modules; write e.g. `poly-3 2-way x 10`")
        for kind in match["kinds"].split():
            if kind not in KINDS:
                raise ValueError(f"{kind!r} in {text!r} is no kind of module, {did_you_mean(kind, KINDS)}")
        kinds += match["kinds"].split() * int(match["times"] or 1)
    if not kinds:
        raise ValueError(f"{text!r} has no module")
    return kinds


class Parallel(nn.ModuleList):
    """Branches whose outputs are concatenated: [B, C, H, W] -> [B, C', H', W']."""

    def forward(self, x: Tensor) -> Tensor:
        """Each branch reads the same features."""
        return torch.cat([branch(x) for branch in self], 1)


def imagenet_stem(norm: Norm, scaled: Scaled) -> tuple[nn.Module, int]:
    """The stem of Inception-v4 for images of about 331 pixels, [B, 3, S, S] -> [B, 384, S/8, S/8], and its channels."""
    conv = partial(ConvNorm, norm=norm)
    c32, c64, c96, c192 = map(scaled, (32, 64, 96, 192))
    first = (conv(3, c32, 3, stride=2), conv(c32, c32, 3, padding=0), conv(c32, c64, 3))
    halved = Parallel([nn.MaxPool2d(3, 2), conv(c64, c96, 3, stride=2)])
    joined = c64 + c96
    short = nn.Sequential(conv(joined, c64, 1), conv(c64, c96, 3, padding=0))
    long = nn.Sequential(
        conv(joined, c64, 1), conv(c64, c64, (7, 1)), conv(c64, c64, (1, 7)), conv(c64, c96, 3, padding=0)
    )
    last = Parallel([nn.MaxPool2d(3, 2), conv(2 * c96, c192, 3, stride=2)])
    return nn.Sequential(*first, halved, Parallel([short, long]), last), 2 * c96 + c192


def small_stem(norm: Norm, scaled: Scaled, stride: int) -> tuple[nn.Module, int]:
    """A stem of ours for small images, which divides their size by `stride` (1, 2 or 4) instead of 8, and its channels.

    Raises:
        ValueError: the stride is another.
    """
    if stride not in (1, 2, 4):
        raise ValueError(f"stem_stride is {stride}; set it to 1, 2 or 4, or to 8 for the stem of Inception-v4")
    c32, c384 = scaled(32), scaled(384)
    strides = (2 if stride == 4 else 1, 2 if stride > 1 else 1)
    first = ConvNorm(3, c32, 3, norm, stride=strides[0], padding=1)
    return nn.Sequential(first, ConvNorm(c32, c384, 3, norm, stride=strides[1], padding=1)), c384


def reduction_a(channels: int, norm: Norm, scaled: Scaled) -> tuple[nn.Module, int]:
    """Between stages A and B: 384 channels to 1152, half as many pixels per side; and its channels."""
    conv = partial(ConvNorm, norm=norm)
    c256, c384 = map(scaled, (256, 384))
    deep = nn.Sequential(conv(channels, c256, 1), conv(c256, c256, 3), conv(c256, c384, 3, stride=2))
    return Parallel([deep, conv(channels, c384, 3, stride=2), nn.MaxPool2d(3, 2)]), channels + 2 * c384


def reduction_b(channels: int, norm: Norm, scaled: Scaled) -> tuple[nn.Module, int]:
    """Between stages B and C: 1152 channels to 2048, half as many pixels per side; and its channels."""
    conv = partial(ConvNorm, norm=norm)
    c256, c384 = map(scaled, (256, 384))
    deep = nn.Sequential(conv(channels, c256, 1), conv(c256, c256, 3), conv(c256, c256, 3, stride=2))
    flat = [nn.Sequential(conv(channels, c256, 1), conv(c256, last, 3, stride=2)) for last in (c256, c384)]
    return Parallel([deep, *flat, nn.MaxPool2d(3, 2)]), channels + 2 * c256 + c384


class PolyNet(Classifier):
    """Stem, stage A, reduction, stage B, reduction, stage C, global average pooling, classifier.

    Args:
        stage_a: The modules of stage A in the form of `parse_stage`; `stage_b` and `stage_c` alike.
        width: Factor on the channels of every layer.
        stem_stride: What the stem divides the size of images by: 8 is Inception-v4's, for 331 pixels; 1, 2 and 4 are
            for images of about 32, 64 and 128, and cheaper the larger they are.
        residual_scale: The factor beta on every term but the identity (section 4; Szegedy 2016, section 3.3).

    Raises:
        ValueError: a stage does not name kinds of modules, or there is no such stem.
    """

    def __init__(
        self,
        stage_a: str = "2-way x 10",
        stage_b: str = "poly-3 2-way x 10",
        stage_c: str = "poly-3 2-way x 5",
        width: float = 1.0,
        stem_stride: int = 8,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        residual_scale: float = 0.3,
        bn_momentum: float = 0.1,
        bn_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.kinds = [parse_stage(stage) for stage in (stage_a, stage_b, stage_c)]

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, momentum=bn_momentum, eps=bn_eps)

        def scaled(channels: int) -> int:
            return max(round(channels * width), 1)

        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.form: dict[str, float] = {
            "width": width,
            "stem_stride": stem_stride,
            "residual_scale": residual_scale,
            "bn_eps": bn_eps,
        }
        stem = imagenet_stem(norm, scaled) if stem_stride == 8 else small_stem(norm, scaled, stem_stride)
        self.stem, channels = stem
        self.reductions, self.stages = nn.ModuleList(), nn.ModuleList()
        # The rate grows linearly, from 0 at the first module to drop_path_rate at the last (Huang 2016).
        rates = iter(torch.linspace(0, drop_path_rate, sum(map(len, self.kinds)), device="cpu").tolist())
        for index, branches in enumerate(INCEPTIONS):
            if index:
                reduction = (reduction_a, reduction_b)[index - 1]
                between, channels = reduction(channels, norm, scaled)
                self.reductions.append(between)
            narrowed = tuple(tuple((scaled(width), kernel) for width, kernel in branch) for branch in branches)
            modules = (
                PolyInception(kind, channels, narrowed, norm, scale=residual_scale, drop_path=next(rates))
                for kind in self.kinds[index]
            )
            self.stages.append(nn.ModuleList(modules))
        self.num_features = channels
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, C, H', W']."""
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            if index:
                x = self.reductions[index - 1](x)
            for module in stage:  # type: ignore[attr-defined]
                again = self.grad_checkpointing and torch.is_grad_enabled()
                x = checkpoint(module, x, use_reentrant=False) if again else module(x)
        return x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, as timm describes it: the stem, reductions and modules, the rest."""
        reductions = [(rf"^reductions\.{index}\.", (index + 1, -1)) for index in range(len(self.reductions))]
        return {"stem": r"^stem", "blocks": [*reductions, (r"^stages\.(\d+)\.(\d+)", None)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of modules again in the backward pass, as timm's networks do."""
        self.grad_checkpointing = enable


@register_model
def polynet(pretrained: bool = False, **kwargs: Any) -> PolyNet:
    """Very Deep PolyNet (10-20-10) for 331 pixels, with 95,366,600 parameters for 1,000 classes."""
    return create(PolyNet, pretrained, kwargs)


@register_model
def polynet_small(pretrained: bool = False, **kwargs: Any) -> PolyNet:
    """PolyNet 2-4-2 of the same mixture, with a quarter of the width and a stem for 32 to 64 pixels: 1.5M weights."""
    return create(PolyNet, pretrained, {**_SMALL, **kwargs})


_SMALL = {
    "stage_a": "2-way x 2",
    "stage_b": "poly-3 2-way x 2",
    "stage_c": "poly-3 2-way",
    "width": 0.25,
    "stem_stride": 2,
}
