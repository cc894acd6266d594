"""ResNet-A to -D as "Bag of Tricks" (He 2019, section 4 and figure 2) names them, at the depths of He 2016.

- **A** is the ResNet of He 2016: where a stage begins, the first 1x1 convolution of the block has the stride 2, and
  ignores three quarters of what it sees.
- **B** gives the stride to the 3x3 convolution. timm's `resnet50` is B. Blocks of two convolutions (depth 18 and 34)
  have no 1x1 convolution, so A and B are equal there.
- **C** is B whose stem, a 7x7 convolution, is three 3x3 convolutions of 32, 32 and 64 channels.
- **D** is C whose projected shortcuts average 2x2 pixels before a 1x1 convolution without a stride.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from pipeline.models.registry import create

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth -> the blocks of the four stages (He 2016, table 1)."""
_DEEP_STEM = {"stem_type": "deep", "stem_width": 32}
VARIANTS: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": _DEEP_STEM, "d": {**_DEEP_STEM, "avg_down": True}}
"""Variant -> the arguments of timm's ResNet."""


class FirstStride(Bottleneck):  # type: ignore[misc]
    """A bottleneck whose first 1x1 convolution has the stride."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


def _constructor(depth: int, variant: str) -> Callable[..., ResNet]:
    block = BasicBlock if depth < 50 else FirstStride if variant == "a" else Bottleneck

    def constructor(pretrained: bool = False, **kwargs: Any) -> ResNet:
        return create(partial(ResNet, block, LAYERS[depth], **VARIANTS[variant]), pretrained, kwargs)

    constructor.__name__ = constructor.__qualname__ = f"resnet{depth}_{variant}"
    constructor.__doc__ = f"ResNet-{depth}-{variant.upper()}."
    return constructor


for _depth in LAYERS:
    for _variant in VARIANTS:
        register_model(_constructor(_depth, _variant))
