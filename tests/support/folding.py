"""Networks of which BatchNorm can be folded, or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.forward import predict_logits


class Network(nn.Module):
    """What a test folds, as a network of timm's two halves."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward_features(self, images: Tensor) -> Tensor:
        return self._forward(self, images)

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


def trained(model: nn.Module) -> nn.Module:
    """A network whose BatchNorms do something, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def images_of(size: int, number: int = 2) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def plain_pair(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.norm(net.conv(x)))


def small(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return trained(Network(forward, conv=nn.Conv2d(3, 8, 3, padding=1), norm=nn.BatchNorm2d(8)))


@torch.inference_mode()
def both(model: nn.Module, images: Tensor) -> tuple[FoldedBatchNorm, Tensor, Tensor]:
    """The folding, the plain prediction and the folded one."""
    plain = predict_logits(model, images)
    folding = FoldedBatchNorm(model, images[:1])
    with folding:
        folded = predict_logits(model, images)
    assert torch.equal(predict_logits(model, images), plain), "the model itself is as it was"
    return folding, plain, folded
