"""The color ops of RandAugment: they change pixel values, and each equals PIL's, bit for bit.

Images are uint8 [B, H, W, 3] on any device. Each op returns the same shape, and each row depends on itself alone. The
formulas are those of Pillow's ImageOps and ImageEnhance (truncation included), and of TensorFlow's models for
solarize_add.
"""

from __future__ import annotations

import torch
from torch import Tensor


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of images [B, H, W, 3] to 0..255 (ImageOps.autocontrast without cutoff)."""
    pixels = images.flatten(1, 2)
    low, high = pixels.amin(1).double()[..., None], pixels.amax(1).double()[..., None]
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    # Float64 and the order of operations are PIL's and decide ties. `255.0 / x` would multiply by a reciprocal.
    scale = levels[-1] / (high - low).clamp(min=1)
    stretched = (levels * scale + -low * scale).clamp(0, 255)
    table = torch.where(high > low, stretched, levels).to(torch.uint8)
    return _look_up(table, _bins(images)).view(images.shape)


def equalize(images: Tensor) -> Tensor:
    """Flatten each channel's histogram in [B, H, W, 3] (ImageOps.equalize). Under 256 pixels nothing changes."""
    bins = _bins(images)
    histogram = torch.zeros(len(images), 768, dtype=torch.int32, device=images.device)
    histogram = histogram.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.int32)).view(-1, 3, 256)
    levels = torch.arange(256, device=images.device)
    last = torch.where(histogram > 0, levels, 0).amax(2, keepdim=True)
    cumulative = histogram.cumsum(2)
    step = (cumulative[..., -1:] - histogram.gather(2, last)) // 255
    flat = (step // 2 + cumulative - histogram) // step.clamp(min=1)
    table = torch.where(step > 0, flat.clamp(max=255), levels).to(torch.uint8)
    return _look_up(table, bins).view(images.shape)


def invert(images: Tensor) -> Tensor:
    """The negative of images [B, H, W, 3] (ImageOps.invert)."""
    return 255 - images


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the highest `bits` (1..8) bits of each value in [B, H, W, 3] (ImageOps.posterize)."""
    return images & (256 - (1 << (8 - bits)))


def solarize(images: Tensor, threshold: int) -> Tensor:
    """Invert the values of [B, H, W, 3] that are at least `threshold`, 0..256 (ImageOps.solarize)."""
    if threshold > 255:
        return images
    return (images >= threshold).to(torch.uint8).mul_(255).bitwise_xor_(images)  # torch.where takes 3 times as long


def solarize_add(images: Tensor, added: int) -> Tensor:
    """Add `added` (0..128, so that nothing overflows) to the values of [B, H, W, 3] below 128."""
    return (images < 128).to(torch.uint8).mul_(added).add_(images)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the saturation by `factors`, float32 [B] (ImageEnhance.Color): 0 gives grey, 1 changes nothing."""
    return _blend(_luma(images)[..., None].expand(images.shape), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the mean luma by `factors`, float32 [B] (ImageEnhance.Contrast): 1 changes nothing."""
    luma = _luma(images).flatten(1)
    num_pixels = luma.shape[1]
    mean = (2 * luma.sum(1) + num_pixels) // (2 * num_pixels)  # int(mean + 0.5), without floating point
    return _blend(mean[:, None, None, None], images, factors)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the values by `factors`, float32 [B] (ImageEnhance.Brightness): 0 gives black, 1 changes nothing."""
    return _blend(torch.zeros((), dtype=torch.uint8, device=images.device), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to a smoothed image by `factors`, float32 [B] (ImageEnhance.Sharpness): 1 changes nothing.

    The filter is ImageFilter.SMOOTH: (1 1 1; 1 5 1; 1 1 1) / 13, with the border pixels copied.
    """
    exact = images.float()  # exact in float32: sums reach 13 * 255, and no quotient is near a tie
    rows = exact[:, :-2] + exact[:, 1:-1] + exact[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * exact[:, 1:-1, 1:-1]
    smooth = exact.clone()
    smooth[:, 1:-1, 1:-1] = (total / 13 + 0.5).floor()
    return _blend(smooth, images, factors)


def _luma(images: Tensor) -> Tensor:
    """PIL's convert("L") as int32 [B, H, W]: ITU-R 601 in 16-bit fixed point."""
    red, green, blue = images.int().unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """PIL's Image.blend: float32, clipped, truncated. Multiply and add are not fused, which would round differently."""
    base = degenerate.float()
    return (images - base).mul_(factors[:, None, None, None]).add_(base).clamp_(0, 255).to(torch.uint8)


def _bins(images: Tensor) -> Tensor:
    """The index of each value among the 3 x 256 bins of its row, int64 [B, H*W*3]."""
    batch, height, width, _ = images.shape
    channels = torch.arange(0, 768, 256, device=images.device).repeat(height * width)
    return images.reshape(batch, -1) + channels


def _look_up(table: Tensor, bins: Tensor) -> Tensor:
    """Map `bins`, int64 [B, H*W*3], through `table`, uint8 [B, 3, 256], which has a row per image and channel."""
    return table.flatten(1).gather(1, bins)
