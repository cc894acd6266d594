"""Fractional max pooling (Graham 2014): pooling regions of random places, by which maps shrink less."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError

FUNCTIONS = frozenset({"max_pool2d", "max_pool2d_with_indices"})
"""Functions that pool without a module, so that nothing can replace them."""
_REGION = 2


class FractionalMaxPool(nn.Module):
    """Maps [B, C, H, W] -> [B, C, ratio H, ratio W] (rounded down), the maxima of overlapping regions of 2x2.

    Where the regions of an axis begin is pseudorandom (Graham 2014, section 2): at floor(alpha (i + u)) -
    floor(alpha u), with alpha the distance that leads from the first to the last. In training u is drawn per image and
    axis, from torch's generator, which is a function of the step as for dropout. All channels of an image have the same
    regions. In evaluation u is 1/2: one fixed choice, where Graham averages several random ones.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] -> smaller maps. It computes in fp32: bf16 would place regions by 8 bits."""
        num_images, num_channels = x.shape[:2]
        draws = torch.rand(num_images, 1, 2, device=x.device) if self.training else x.new_full((num_images, 1, 2), 0.5)
        regions = draws.float().expand(-1, num_channels, -1).contiguous()
        with torch.autocast(x.device.type, enabled=False):
            pooled = F.fractional_max_pool2d(
                x.float(), _REGION, output_ratio=(self.ratio, self.ratio), _random_samples=regions
            )
        return pooled.to(x.dtype)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"ratio={self.ratio:g}"


def with_fractional_pooling(model: nn.Module, ratio: float) -> list[nn.Module]:
    """Put fractional max pooling in the place of each max pooling with stride 2; returns the new modules.

    Raises:
        UserError: the ratio is not between 1/2, which is pooling without a choice, and 1, or the network has no such
            pooling.
    """
    if not 0.5 < ratio < 1:
        raise UserError(f"`fractional_pooling`: {ratio} is not between 0.5 and 1; 0.7 is usual")
    new: list[nn.Module] = []
    for parent in list(model.modules()):
        for attribute, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d) and module.stride in (2, (2, 2), [2, 2]):
                new.append(FractionalMaxPool(ratio))
                setattr(parent, attribute, new[-1])
    if not new:
        raise UserError(
            f"`fractional_pooling`: {type(model).__name__} has no max pooling with stride 2 to replace; set it to "
            "null, or choose a model that has, such as resnet9 or vgg11_bn"
        )
    return new
