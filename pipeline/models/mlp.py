"""A plain deep network of linear layers, without normalization or shortcuts, on which initializations and activations
show what they do (CS231n, lecture on training neural networks: ten layers of 500 units)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.classifier import Classifier
from pipeline.models.registry import create


class Mlp(Classifier):
    """`depth` hidden layers of `width` units, each with an activation, on the pixels of images of one size."""

    def __init__(
        self,
        img_size: int = 32,
        width: int = 500,
        depth: int = 10,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.drop_rate = num_classes, width, drop_rate
        sizes = [in_chans * img_size**2, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(depth))
        self.fc = nn.Linear(width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> features [B, width]."""
        x = x.flatten(1)
        for layer, act in zip(self.layers, self.acts, strict=True):
            x = act(layer(x))
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """Features [B, width] -> what the last layer reads: themselves, with dropout."""
        return F.dropout(x, self.drop_rate, self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, as timm describes it: the first is the stem."""
        return {"stem": r"^layers\.0\.", "blocks": r"^(?:layers|acts)\.(\d+)"}


@register_model
def mlp10(pretrained: bool = False, **kwargs: Any) -> Mlp:
    """Ten hidden layers of 500 units; set `model_args: {img_size: S}` for images of another side than 32."""
    return create(Mlp, pretrained, kwargs)
