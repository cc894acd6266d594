"""The geometric ops: crop, mirror, affine resampling and cutout. Images are uint8 [B, H, W, 3] on any device.

Each row of a result depends on that row alone. There are no reductions over the batch and no matrix products, because
their rounding may depend on the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FILL = 128
"""The grey of pixels from outside the image and of cutout (RandAugment's `replace` value)."""
_LARGE = 1 << 13
"""Bytes of an image (52 pixels per side) above which a host mirrors images one by one: torch's index_copy takes 6 times
as long at 224 pixels."""


def fit(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of [B, H, W, 3] to `size` (bicubic, antialiased), then crop the centre square.

    Images that have that size already, as the reader gives them, are returned without a copy.
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
    """Pad images by reflection, crop them to their size before, and mirror some. It is a gather, so pixels are exact.

    Args:
        images: uint8 [B, S, S, 3].
        corners: int32 [B, 2], the (top, left) of each crop in the padded image, 0..2*padding.
        flips: bool [B], which crops are mirrored.
        padding: Pixels of reflection on each side; the edge pixel is not repeated.
    """
    batch, size = images.shape[:2]
    steps = torch.arange(size, device=images.device)
    rows = _reflect(corners[:, :1] + steps - padding, size)
    columns = _reflect(corners[:, 1:] + torch.where(flips[:, None], size - 1 - steps, steps) - padding, size)
    rows = rows * size + torch.arange(batch, device=images.device)[:, None] * size**2
    index = rows[:, :, None] + columns[:, None, :]
    return images.reshape(-1, 3).index_select(0, index.view(-1)).view(images.shape)


def mirror(images: Tensor, rows: Tensor) -> Tensor:
    """A copy of images [B, H, W, 3] in which those of rows [n] are mirrored: a third of the time of `crop`."""
    index = rows.long()
    if images.device.type == "cpu" and images[:1].numel() > _LARGE:
        mirrored = images.clone()
        for row in index.tolist():
            mirrored[row] = images[row].flip(1)
        return mirrored
    return images.index_copy(0, index, images.index_select(0, index).flip(2))


def resample(images: Tensor, affine: Tensor, size: int) -> Tensor:
    """Sample each image at affine positions, bilinearly and rounded: uint8 [B, size, size, 3].

    Args:
        images: uint8 [B, H, W, 3].
        affine: float32 [B, 6], PIL's AFFINE data: output pixel centre (x, y) reads from (ax + by + c, dx + ey + f).
            Pixel centres are at +0.5. As in PIL, a position outside the image is `FILL`, without any blending, and
            within half a pixel of the border the border pixel is repeated. Unlike PIL, which truncates (and so
            darkens by half a level each time), the result is rounded to nearest.
        size: The side of the output.
    """
    height, width = images.shape[1:3]
    centres = torch.arange(size, device=images.device) + 0.5
    grid = affine.new_empty(
        2, len(images), size, size
    )  # x and y are planes, which are faster to make and as fast to read
    for plane, extent, coefficients in zip(grid, (width, height), affine.view(-1, 2, 3).unbind(1), strict=True):
        across, down, offset = (coefficients * (2 / extent)).split_with_sizes([1, 1, 1], dim=1)
        columns = across * centres + (offset - 1)  # grid_sample's unit is half a side, from the centre
        torch.add(columns[:, None, :], (down * centres)[:, :, None], out=plane)
    within = (grid >= -1) & (grid < 1)
    planes = images.permute(0, 3, 1, 2).float().sub_(FILL)  # multiplying by 0 then gives the fill
    sampled = functional.grid_sample(
        planes, grid.permute(1, 2, 3, 0), mode="bilinear", padding_mode="border", align_corners=False
    )
    rounded = sampled.mul_((within[0] & within[1])[:, None]).add_(FILL + 0.5).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous()


def cut_out(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Fill a square of `side` pixels with grey, clipped at the border (DeVries and Taylor 2017, section 3.2).

    Args:
        images: uint8 [B, S, S, 3].
        corners: int32 [B, 2], the (top, left) of each square, which may lie outside the image.
        side: The side of the square in pixels.
    """
    batch, size = images.shape[:2]
    offsets = torch.arange(size, device=images.device) - corners[:, :, None]
    inside = ((offsets >= 0) & (offsets < side)).to(torch.uint8)
    mask = inside[:, 0, :, None] * inside[:, 1].repeat_interleave(3, dim=1)[:, None, :]
    pixels = images.view(batch, size, size * 3)
    return (FILL - pixels).mul_(mask).add_(pixels).view(images.shape)  # modulo 256; torch.where takes 3 times as long


def _reflect(index: Tensor, size: int) -> Tensor:
    """Fold integers of any shape into 0..size-1 by reflection at the centres of the edge pixels."""
    period = max(2 * (size - 1), 1)
    folded = index % period
    return torch.minimum(folded, period - folded) if size > 1 else folded
