"""Where pixels come from: crop, flip, affine resampling, cutout. Images are uint8 [B, H, W, 3] on any device.

Every result of a row depends on that row alone: there are no reductions over the batch and no matrix products, whose
rounding may depend on the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FILL = 128
"""Grey for pixels from outside the image and for cutout (RandAugment's `replace` value)."""


def fit(images: Tensor, size: int) -> Tensor:
    """The centre square at `size`: shorter side to `size` (bicubic, antialiased), then a centre crop; uint8.

    The identity, without a copy, when the images have that size already, which is what the reader gives.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    new_height, new_width = max(size, round(height * scale)), max(size, round(width * scale))
    planes = images.permute(0, 3, 1, 2).float()
    resized = functional.interpolate(planes, (new_height, new_width), mode="bicubic", antialias=True)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    cropped = resized[:, :, top : top + size, left : left + size]
    return cropped.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def crop(images: Tensor, corners: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad by reflection, crop to the size before, mirror some: a gather, so every pixel is exact.

    Args:
        images: uint8 [B, S, S, 3].
        corners: int32 [B, 2], (top, left) of the crop in the padded image, 0..2*padding.
        flips: bool [B], which crops to mirror.
        padding: pixels of reflection on each side; the edge pixel is not repeated.
    """
    batch, size = images.shape[:2]
    steps = torch.arange(size, device=images.device)
    rows = _reflect(corners[:, :1] + steps - padding, size)
    columns = _reflect(corners[:, 1:] + torch.where(flips[:, None], size - 1 - steps, steps) - padding, size)
    rows = rows * size + torch.arange(batch, device=images.device)[:, None] * size**2
    index = rows[:, :, None] + columns[:, None, :]
    return images.reshape(-1, 3).index_select(0, index.view(-1)).view(images.shape)


def resample(images: Tensor, affine: Tensor, size: int) -> Tensor:
    """Bilinear samples of each image at affine positions, rounded; uint8 [B, size, size, 3].

    Args:
        images: uint8 [B, H, W, 3].
        affine: float32 [B, 6], PIL's AFFINE data: output pixel centre (x, y) is read at (ax + by + c, dx + ey + f).
            Pixel centres are at +0.5. As in PIL, a position outside the image is `FILL`, without any blending, and
            within half a pixel of the border the border pixel is repeated. Unlike PIL, which truncates (and so
            darkens by half a level each time), the result is rounded to nearest.
        size: side of the output.
    """
    height, width = images.shape[1:3]
    centres = torch.arange(size, device=images.device) + 0.5
    a, b, c, d, e, f = (column[:, None] for column in affine.unbind(1))
    x = (a * centres + c)[:, None, :] + (b * centres)[:, :, None]
    y = (d * centres + f)[:, None, :] + (e * centres)[:, :, None]
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], dim=-1)
    planes = images.permute(0, 3, 1, 2).float()
    sampled = functional.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    rounded = sampled.add_(0.5).to(torch.uint8).permute(0, 2, 3, 1)
    return rounded.masked_fill(outside[..., None], FILL).contiguous()


def cut_out(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Fill a square of `side` pixels with grey, clipped at the border (DeVries and Taylor 2017, section 3.2).

    Args:
        images: uint8 [B, S, S, 3].
        corners: int32 [B, 2], (top, left) of the square, which may lie outside the image.
        side: pixels.
    """
    batch, size = images.shape[:2]
    offsets = torch.arange(size, device=images.device) - corners[:, :, None]
    inside = (offsets >= 0) & (offsets < side)
    rows, columns = inside[:, 0, :, None], inside[:, 1].repeat_interleave(3, dim=1)[:, None, :]
    return images.view(batch, size, size * 3).masked_fill(rows & columns, FILL).view(images.shape)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold any integer into 0..size-1 by reflection at the edge pixels' centres."""
    period = max(2 * (size - 1), 1)
    folded = index % period
    return torch.minimum(folded, period - folded) if size > 1 else folded
