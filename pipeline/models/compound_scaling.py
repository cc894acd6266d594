"""Compound scaling: EfficientNets of any size (Tan 2019, section 3.3), of timm's blocks.

A coefficient phi scales depth, width and resolution together (equation 3), so that operations grow by about 2^phi.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

from timm.layers import get_act_layer
from timm.models import register_model
from timm.models._efficientnet_builder import decode_arch_def, resolve_bn_args, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from pipeline.config.growth import ALPHA, BETA
from pipeline.models.registry import create

STAGES = (
    "ds_r1_k3_s1_e1_c16_se0.25",
    "ir_r2_k3_s2_e6_c24_se0.25",
    "ir_r2_k5_s2_e6_c40_se0.25",
    "ir_r3_k3_s2_e6_c80_se0.25",
    "ir_r3_k5_s1_e6_c112_se0.25",
    "ir_r4_k5_s2_e6_c192_se0.25",
    "ir_r1_k3_s1_e6_c320_se0.25",
)
"""The stages of B0 (table 1), in timm's words: repeats, kernel, stride, expansion, channels, squeeze-and-excitation."""


class Size(NamedTuple):
    """The size of a network that was published."""

    width: float
    """Factor on the channels of B0."""
    depth: float
    """Factor on the layers of each stage of B0."""
    image_size: int
    """Side in pixels of the images that it is trained on."""
    source: str


PUBLISHED: dict[str, Size] = {
    "B0": Size(1.0, 1.0, 224, "Tan 2019"),
    "B1": Size(1.0, 1.1, 240, "Tan 2019"),
    "B2": Size(1.1, 1.2, 260, "Tan 2019"),
    "B3": Size(1.2, 1.4, 300, "Tan 2019"),
    "B4": Size(1.4, 1.8, 380, "Tan 2019"),
    "B5": Size(1.6, 2.2, 456, "Tan 2019"),
    "B6": Size(1.8, 2.6, 528, "Tan 2019"),
    "B7": Size(2.0, 3.1, 600, "Tan 2019"),
    "L0": Size(2.8, 3.7, 380, "Xie 2020, table 7"),
    "L1": Size(3.9, 3.7, 380, "Xie 2020, table 7"),
    "L2": Size(4.3, 5.3, 475, "Xie 2020, table 7"),
    "B6-Wide": Size(5.0, 2.6, 512, "Pham 2021, appendix"),
}
"""Networks by name. Their factors were rounded by hand and are not quite the powers of equation 3: B7's depth is 3.1,
not 3.58. L0 to L2 are judged at 600, 600 and 800 pixels."""


def scaled_efficientnet(
    phi: float = 0.0, width: float = 1.0, depth: float = 1.0, reduction: int = 32, **arguments: Any
) -> EfficientNet:
    """An EfficientNet whose channels are those of B0 times width * 1.1^phi, and whose layers times depth * 1.2^phi.

    Channels are rounded to multiples of 8, but never below 90%, and layers per stage up, as in the authors' code. With
    the factors of `PUBLISHED` and phi 0 it is timm's network of that name, down to the names of its weights. Factors
    below 1 and a negative phi give smaller ones than B0.

    Args:
        phi: The compound coefficient (equation 3).
        width: Factor on the channels, beside that of phi.
        depth: Factor on the layers, beside that of phi.
        reduction: Side of an image over that of the last features: 32, 16, 8 or 4. Each halving takes the stride away
            from one more of the stem, stage 2 and stage 3. With 4, images of 32 pixels keep 8 x 8 features, as in the
            code of Meta Pseudo Labels for CIFAR-10.
        **arguments: Those of timm's EfficientNets, such as `act_layer`, `bn_momentum` and `drop_rate`.

    Raises:
        ValueError: a factor is not positive, or `reduction` is another number.
    """
    channels, layers = width * BETA**phi, depth * ALPHA**phi
    if not (channels > 0 and layers > 0):
        raise ValueError(f"width {width} and depth {depth} must be above 0")
    if reduction not in (32, 16, 8, 4):
        raise ValueError(f"reduction is {reduction}; set it to 32, 16, 8 or 4")
    spared = round(math.log2(32 / reduction))  # of the stem, stage 2 and stage 3, from the first on
    stages = [stage.replace("_s2_", "_s1_") if 1 <= number < spared else stage for number, stage in enumerate(STAGES)]
    rounded = partial(round_channels, multiplier=channels)
    norm_layer = partial(nn.BatchNorm2d, **resolve_bn_args(arguments))
    model = EfficientNet(
        block_args=decode_arch_def([[stage] for stage in stages], layers),
        num_features=rounded(1280),
        round_chs_fn=rounded,
        act_layer=get_act_layer(arguments.pop("act_layer", "silu")),
        norm_layer=norm_layer,
        **arguments,
    )
    if spared:
        model.conv_stem.stride = (1, 1)
    return model


@register_model
def efficientnet(pretrained: bool = False, **kwargs: Any) -> EfficientNet:
    """An EfficientNet of any size, e.g. `model_args: {phi: 1}`, or `{width: 1.4, depth: 1.8}`, which is B4."""
    return create(scaled_efficientnet, pretrained, kwargs)
