"""Wide residual networks (Zagoruyko 2016) as Meta Pseudo Labels' CIFAR code has them: pre-activation, leaky ReLU 0.2,
BatchNorm with momentum 0.01 and eps 1e-3, He-normal (fan-out) convolutions."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from pipeline.models.classifier import Classifier
from pipeline.models.registry import create


class Block(nn.Module):
    """A pre-activation residual block: norm, act, conv, norm, act, conv, on [B, C, H, W]."""

    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float, bn: dict[str, float]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels, **bn)  # type: ignore[arg-type]
        self.act1 = nn.LeakyReLU(0.2, inplace=True)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, **bn)  # type: ignore[arg-type]
        self.act2 = nn.LeakyReLU(0.2, inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        matches = in_channels == channels and stride == 1
        self.shortcut = None if matches else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.drop_path = DropPath(drop_path)

    def zero_init_last(self) -> None:
        """Set the convolution that the residual branch ends with to 0."""
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] -> [B, C', H/stride, W/stride]."""
        active = self.act1(self.norm1(x))
        out = self.conv2(self.act2(self.norm2(self.conv1(active))))
        # A projected shortcut starts from the activated input, an identity shortcut from x itself (He 2016).
        residual: Tensor = self.drop_path(out)
        return (x if self.shortcut is None else self.shortcut(active)) + residual


class WideResNet(Classifier):
    """WRN-depth-width for small images: three stages of (depth - 4) / 6 blocks, at strides 1, 2 and 4.

    Raises:
        ValueError: the depth is not 6n + 4.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        bn_momentum: float = 0.01,
        bn_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"a wide residual network's depth is 6n + 4, not {depth}")
        blocks_per_stage = (depth - 4) // 6
        bn = {"momentum": bn_momentum, "eps": bn_eps}
        self.num_classes = num_classes
        self.num_features = 64 * width
        self.drop_rate = drop_rate
        self.stem = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        blocks: list[Block] = []
        channels = 16
        num_blocks = 3 * blocks_per_stage
        for stage in range(3):
            for index in range(blocks_per_stage):
                # The rate grows linearly, from 0 at the first block to drop_path_rate at the last (Huang 2016).
                drop_path = drop_path_rate * len(blocks) / max(num_blocks - 1, 1)
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(Block(channels, 16 * 2**stage * width, stride, drop_path, bn))
                channels = 16 * 2**stage * width
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(channels, **bn)  # type: ignore[arg-type]
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, C, H/4, W/4]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        active: Tensor = self.act(self.norm(x))
        return active

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, as timm describes it: the stem, the blocks, the rest."""
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}


@register_model
def wide_resnet10_1(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-10-1 with 0.08M parameters, the network of the digits demo."""
    return create(partial(WideResNet, 10, 1), pretrained, kwargs)


@register_model
def wide_resnet16_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-16-2 with 0.7M parameters."""
    return create(partial(WideResNet, 16, 2), pretrained, kwargs)


@register_model
def wide_resnet28_2(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-2 with 1.5M parameters, the standard network of semi-supervised CIFAR-10."""
    return create(partial(WideResNet, 28, 2), pretrained, kwargs)
