"""A residual network for small images on slow machines, after the DAWNBench winners (Page 2018, "How to Train Your
ResNet") and airbench (Jordan 2024): it has few, wide convolutions and pools early, so memory traffic does not bound it.

On CPUs with bf16 matrix units its throughput is about four times that of a WRN-28-2, which is of similar size.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.classifier import Classifier
from pipeline.models.registry import create


class Block(nn.Module):
    """Conv, max-pool by 2, norm, act, then a residual branch of conv, norm, act, on [B, C, H, W]."""

    def __init__(self, in_channels: int, channels: int, drop_path: float, bn_momentum: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(channels, momentum=bn_momentum)
        self.act1 = nn.SiLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels, momentum=bn_momentum)
        self.act2 = nn.SiLU(inplace=True)
        self.drop_path = DropPath(drop_path)

    def zero_init_last(self) -> None:
        """Set the gamma of the normalization in the residual branch to 0; the activation after it maps 0 to 0."""
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] -> [B, C', H/2, W/2]."""
        x = self.act1(self.norm1(self.pool(self.conv1(x))))
        residual: Tensor = self.drop_path(self.act2(self.norm2(self.conv2(x))))
        return x + residual


class ResNet9(Classifier):
    """A stem, three stages of `width`, 2 `width` and 4 `width` channels, and a global max pooling.

    Logits are scaled by 1/9, which keeps the first steps of a high learning rate from saturating the softmax.
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        bn_momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = 4 * width
        self.drop_rate = drop_rate
        self.stem = nn.Conv2d(in_chans, 24, 2, 1, 0)
        self.stem_act = nn.SiLU(inplace=True)
        self.stages = nn.ModuleList()
        channels = 24
        for index in range(3):
            # The rate grows linearly, from a third of it at the first block to all of it at the last (Huang 2016).
            self.stages.append(Block(channels, width * 2**index, drop_path_rate * (index + 1) / 3, bn_momentum))
            channels = width * 2**index
        self.fc = nn.Linear(channels, num_classes, bias=False)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, 4 width, H/8, W/8]."""
        x = self.stem_act(self.stem(F.pad(x, (0, 1, 0, 1))))
        for stage in self.stages:
            x = stage(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] -> what the last layer reads, [B, C]: their maxima, with dropout."""
        return F.dropout(x.amax((2, 3)), self.drop_rate, self.training)

    def classified(self, x: Tensor) -> Tensor:
        """What the last layer reads [B, C] -> logits [B, num_classes]."""
        return super().classified(x) / 9

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, as timm describes it: the stem, the stages, the rest."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Let the stem whiten the 2x2 patches of normalized images [B, 3, H, W] (Page 2018).

        Its filters become the principal directions of the data, each divided by its standard deviation, with both
        signs. They depend on the data, so a training calls this once, before its first step.
        """
        patches = images.float().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(12, -1, 2, 2).flip(0)
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]


@register_model
def resnet9(pretrained: bool = False, **kwargs: Any) -> ResNet9:
    """ResNet-9 with widths 64, 128 and 256: 1.2M parameters."""
    return create(ResNet9, pretrained, kwargs)
