"""AlexNet (Krizhevsky 2012), as section 3.5 and figure 2 have it, but on one device: its convolutions are not grouped.

At 227 pixels and with 1,000 classes it has 62,378,344 parameters. The 224 pixels of the paper's text do not fit its own
figure: 55 positions of an 11x11 window at stride 4 need 227.
"""

from __future__ import annotations

from typing import Any

from timm.layers import get_act_layer
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.classifier import Classifier
from pipeline.models.local_response import LocalResponseNorm
from pipeline.models.registry import create


class AlexNet(Classifier):
    """Five convolutions, of which 1 and 2 are followed by local response normalization and 1, 2 and 5 by overlapping
    max pooling, then two hidden linear layers with dropout, and the classifier.

    The features are averaged to `grid` x `grid` before the first linear layer. That is the identity at 227 pixels, and
    at every size and `stride` that give as many anyway. A window of a pooling may stick out at the border, as in the
    authors' code, so that small images keep their last row; at 227 pixels none does.

    Args:
        grid: Side of the features that the first linear layer reads. Smaller images need a smaller one: it would
            only repeat features otherwise (227 pixels: 6, 128: 3, 96: 2; with `stride` 2, 64: 3; with 1, 32: 2).
        stride: Step of the first convolution. Lower it for images below 128 pixels.
        width: Factor on the channels of all layers but the classifier, e.g. 0.25 for few labels.
        lrn: Whether responses are normalized (section 3.3: without it the top-1 error is 1.4 points higher).
        pool: Side of the pooling windows, whose stride is 2; 2 does not overlap (section 3.4: 0.4 points higher).
        act_layer: The nonlinearity, by its name in timm (section 3.1: with tanh it takes 6 times as many steps).
        drop_rate: Probability of dropping an output of a hidden linear layer (section 4.2: 0.5).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        grid: int = 6,
        stride: int = 4,
        width: float = 1.0,
        lrn: bool = True,
        pool: int = 3,
        act_layer: str = "relu",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        channels = [in_chans, *(max(round(number * width), 1) for number in (96, 256, 384, 384, 256))]
        hidden = max(round(4096 * width), 1)
        self.num_classes, self.num_features, self.grid = num_classes, hidden, grid
        activation = get_act_layer(act_layer)
        norm = [LocalResponseNorm()] if lrn else []
        shrink = [nn.MaxPool2d(pool, 2, ceil_mode=True)]
        plan: list[tuple[int, int, int, list[nn.Module]]] = [
            (11, stride, 0, [*norm, *shrink]),
            (5, 1, 2, [*norm, *shrink]),
            (3, 1, 1, []),
            (3, 1, 1, []),
            (3, 1, 1, [*shrink]),
        ]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[i], channels[i + 1], kernel, step, padding), activation(), *after)
            for i, (kernel, step, padding, after) in enumerate(plan)
        )
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Dropout(drop_rate))
            for inputs in (channels[-1] * grid**2, hidden)
        )
        self.fc = nn.Linear(hidden, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, 256, H', W'], 6 x 6 of 227 x 227."""
        for conv in self.convs:
            x = conv(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """Features [B, C, H', W'] -> what the hidden layers make of them, [B, 4096]."""
        x = F.adaptive_avg_pool2d(x, self.grid).flatten(1)
        for layer in self.hidden:
            x = layer(x)
        return x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The order of the layers, as timm describes it: the first convolution, the others, the linear layers."""
        return {"stem": r"^convs\.0\.", "blocks": r"^convs\.(\d+)", "hidden": r"^hidden\.(\d+)"}


@register_model
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet with 62.4M parameters for 1,000 classes; `width` and `grid` make it smaller."""
    return create(AlexNet, pretrained, kwargs)
