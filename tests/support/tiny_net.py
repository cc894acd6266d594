"""A model without BatchNorm, dropout and stochastic depth, on which 2 ranks must equal 1 process."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

import pipeline.models  # noqa: F401

from timm.models import register_model  # isort: skip - after pipeline.models, which lets it be imported


class TinyNet(nn.Module):
    """One convolution and a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.fc = nn.Linear(8 * 16, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc


@register_model
def selftrain_tiny(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    return TinyNet(kwargs["num_classes"])


def register() -> None:
    """Called in a child, it makes the child import this file, and so know the model."""
