"""Color noise of the weak view: jitter of brightness, contrast, saturation and hue, and shifts along the components of
the colors of the training images (PCA color).

The values are float32 on the way and are rounded once, at the end, which torchvision does after each operation. Planes
of one channel are worked on, because on a host every third number costs as much as all three.

Shapes: B images, S their side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F32Array, F64Array, U64Array
from pipeline.config import WeakView
from pipeline.randomness import Purpose, key_of, normals, uniforms

NUM_NUMBERS = 7
"""Per image: the factors of brightness, contrast and saturation, the turn of the hue, and the shifts of R, G and B."""
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _SHIFT = range(5)
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601, as in Pillow and torchvision."""
_CACHED_NUMBERS = 1 << 17


@dataclass(frozen=True)
class ColorNoise:
    """Draws and applies the color noise of one training."""

    weak: WeakView
    components: F64Array | None
    """[3, 3]: the eigenvectors of the covariance of R, G and B in 0..1, one per column, times their eigenvalues; None
    if `pca_color` is off."""
    key_coordinates: tuple[int, ...]
    """The run's seed, then whatever tells this noise from other noise, such as the round."""

    @property
    def is_on(self) -> bool:
        """Whether there is any noise to apply."""
        return self.weak.color_jitter is not None or self.components is not None

    def draw(self, positions: U64Array, purpose: Purpose) -> F32Array:
        """The numbers [B, NUM_NUMBERS] of the images at these positions; [B, 0] if there is no noise.

        Factors are uniform in 1 - strength..1 + strength (He 2019, Bag of Tricks, 2.1), turns in -hue..hue. A shift is
        sum_i alpha_i lambda_i p_i with alpha_i from N(0, pca_color) (Krizhevsky 2012, 4.1).
        """
        if not self.is_on:
            return np.empty((len(positions), 0), np.float32)
        seed, *coordinates = self.key_coordinates
        key = key_of(seed, "color", *coordinates, purpose)
        numbers = np.zeros((len(positions), NUM_NUMBERS))
        if (jitter := self.weak.color_jitter) is not None:
            strength = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
            numbers[:, :_SHIFT] = [1, 1, 1, 0] + strength * (2 * uniforms(key, positions, 4) - 1)
        if self.components is not None:
            alpha = self.weak.pca_color * normals(key_of(seed, "color", *coordinates, purpose, "pca"), positions, 3)
            numbers[:, _SHIFT:] = 255 * (alpha[:, None, :] * self.components).sum(2)  # no product of matrices: its
        return numbers.astype(np.float32)  # rounding may depend on the number of rows

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Images uint8 [B, S, S, 3] with the noise of `numbers` [B, NUM_NUMBERS], of the same shape."""
        result, num = torch.empty_like(images), num_at_once(images)
        for part, given, of_part in zip(result.split(num), images.split(num), numbers.split(num), strict=True):
            planes = given.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            self._change(planes, of_part[:, :, None, None])
            part.copy_(planes.add_(0.5).clamp_(0, 255).permute(0, 2, 3, 1))  # the cast cuts off: this rounds
        return result

    def _change(self, planes: Tensor, numbers: Tensor) -> None:
        """Apply, in place, to planes float32 [B, 3, S, S] in 0..255 what is on, by numbers [B, NUM_NUMBERS, 1, 1]."""
        if (strength := self.weak.color_jitter) is not None:
            if strength.brightness:
                planes.mul_(_column(numbers, _BRIGHTNESS)).clamp_(0, 255)
            if strength.contrast:
                # Whole numbers in float64, whose sum is exact: it does not depend on order, threads or the batch.
                mean = _luma(planes).round_().sum((2, 3), dtype=torch.float64).div_(planes[0, 0].numel())
                blend(planes, mean.float()[:, :, None, None], _column(numbers, _CONTRAST))
            if strength.saturation:
                blend(planes, _luma(planes), _column(numbers, _SATURATION))
            if strength.hue:
                turn_hue(planes, _column(numbers, _HUE))
        if self.components is not None:
            planes.add_(numbers[:, _SHIFT:])


def num_at_once(images: Tensor) -> int:
    """How many images [B, ...] are worked on at a time: on a host so few that they stay in its cache."""
    if images.device.type != "cpu":
        return max(len(images), 1)
    return max(_CACHED_NUMBERS // max(images[:1].numel(), 1), 1)


def blend(planes: Tensor, base: Tensor, factors: Tensor) -> None:
    """Scale, in place, the distance of planes [B, 3, S, S] to a base [B, 1, S, S] or [B, 1, 1, 1]; 1 changes nothing.
    Multiply and add are not fused, which would round differently at the end of a batch."""
    planes.mul_(factors).add_(base * (1 - factors)).clamp_(0, 255)


def turn_hue(planes: Tensor, turns: Tensor) -> None:
    """Turn, in place, the hue of planes [B, 3, S, S] by shares [B, 1, 1, 1] of the color circle, at the same value and
    saturation in the sense of HSV (Smith 1978)."""
    red, green, blue = planes.unbind(1)
    highest = planes.amax(1)
    chroma = highest - planes.amin(1)
    safe = chroma.clamp(min=1e-6)  # grey has no hue; whatever stands for it is multiplied by a chroma of 0
    of_blue = (red - green) / safe + 4
    of_green = torch.where(highest == green, (blue - red) / safe + 2, of_blue)
    sixths = torch.where(highest == red, (green - blue) / safe, of_green) + 6 * turns[:, 0]
    for plane, offset in zip((red, green, blue), (5, 3, 1), strict=True):
        place = sixths + offset
        place = place - 6 * (place / 6).floor()  # `%` may round differently at the end of a batch
        plane.copy_(highest - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))


def _luma(planes: Tensor) -> Tensor:
    """The luma [B, 1, S, S] of planes [B, 3, S, S]."""
    red, green, blue = planes.split(1, dim=1)
    luma: Tensor = (red * _LUMA[0]).add_(green * _LUMA[1]).add_(blue * _LUMA[2])
    return luma


def _column(numbers: Tensor, column: int) -> Tensor:
    return numbers[:, column : column + 1]
