"""The views of an image that a model sees: weak, strong and centre, made in batches on the device.

The numbers behind a view are a function of (seed, round, purpose, stream position). Philox draws them on the host, and
one upload brings them to the device, so the device never waits for the host (invariants 1 and 8 of the design).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.arrays import F32Array, F64Array, I32Array, U64Array
from pipeline.config import StrongView, WeakView
from pipeline.errors import UserError
from pipeline.randomness import Purpose, key_of, uniforms
from pipeline.views.geometry import crop, cut_out, fit, resample
from pipeline.views.randaugment import RandAugment

# Columns of the draws. Each number has its own column, so that turning one kind of noise off changes no other.
_TOP, _LEFT, _FLIP, _AREA, _ASPECT, _CUT_TOP, _CUT_LEFT = range(7)
_RANDAUGMENT = 8
_ASPECTS = (3 / 4, 4 / 3)

Draws = F64Array


class Views:
    """Makes views of image batches.

    Images are uint8 [B, H, W, 3] on the device. Positions are uint64 [B] on the host: places in a stream, or other
    numbers that tell the samples apart. A view is float32 [B, 3, S, S], channels_last, normalized with `mean` and
    `std`. Each row of a view depends on the image and the position of that row only, not on the rest of the batch.

    Args:
        weak: The settings of crop and flip.
        strong: The settings of RandAugment and cutout, which come on top of the weak view.
        image_size: The side S of a view in pixels.
        mean: The mean of each of the three channels, in units of 0..1.
        std: The standard deviation of each of the three channels, in the same units.
        device: Where the images are.
        key_coordinates: The run's seed, then whatever tells these views from others, such as the round.

    Raises:
        UserError: the cutout is larger than the image.
    """

    def __init__(
        self,
        weak: WeakView,
        strong: StrongView,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        key_coordinates: tuple[int, ...] = (0,),
    ):
        if strong.cutout > image_size:
            raise UserError(
                f"strong.cutout is {strong.cutout} pixels, more than the image size of {image_size}; "
                f"set it to at most {image_size} (half the size is usual)"
            )
        self._weak = weak
        self._strong = strong
        self._size = image_size
        self._device = torch.device(device)
        self._seed, *self._coordinates = key_coordinates
        self._randaugment = RandAugment(strong.num_ops, strong.magnitude, image_size)
        # Repeated for every pixel, because broadcasting over a last dimension of 3 takes 5 times as long on a CPU.
        channels = np.array([mean, std], np.float64)
        scale, shift = 1 / (255 * channels[1]), -channels[0] / channels[1]
        repeated = np.tile(np.stack([scale, shift]), image_size**2).astype(np.float32)
        self._scale, self._shift = torch.from_numpy(repeated).to(self._device)

    def weak(self, images: Tensor, positions: U64Array, purpose: Purpose = "weak") -> Tensor:
        """The view with a random crop and flip, float32 [B, 3, S, S]."""
        return self._normalize(self.weak_uint8(images, positions, purpose))

    def strong(self, images: Tensor, positions: U64Array, purpose: Purpose = "strong") -> Tensor:
        """The weak view, then RandAugment, then cutout: float32 [B, 3, S, S]. Other purposes give independent noise."""
        return self._normalize(self.strong_uint8(images, positions, purpose))

    def center(self, images: Tensor) -> Tensor:
        """The view without noise, float32 [B, 3, S, S], for labeling and evaluation."""
        return self._normalize(fit(images, self._size))

    def weak_uint8(self, images: Tensor, positions: U64Array, purpose: Purpose = "weak") -> Tensor:
        """The weak view before normalization, uint8 [B, S, S, 3]."""
        draws = self._draw(images, positions, purpose, _RANDAUGMENT)
        place, flip = _upload(self._place(draws, images), self._flip(draws), device=self._device)
        return self._crop(images, place, flip)

    def strong_uint8(self, images: Tensor, positions: U64Array, purpose: Purpose = "strong") -> Tensor:
        """The strong view before normalization, uint8 [B, S, S, 3]."""
        draws = self._draw(images, positions, purpose, _RANDAUGMENT + 2 * self._strong.num_ops)
        plan = self._randaugment.draw(draws[:, _RANDAUGMENT:])
        squares = (draws[:, [_CUT_TOP, _CUT_LEFT]] * self._size).astype(np.int32) - self._strong.cutout // 2
        arrays = (self._place(draws, images), self._flip(draws), plan.order, plan.parameters, squares)
        place, flip, order, parameters, corners = _upload(*arrays, device=self._device)
        view = self._crop(images, place, flip)
        if plan.counts and len(view):
            view = self._randaugment.apply(view, order, parameters, plan.counts)
        return cut_out(view, corners, self._strong.cutout) if self._strong.cutout else view

    def _draw(self, images: Tensor, positions: U64Array, purpose: Purpose, num_draws: int) -> Draws:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(positions):
            raise ValueError(
                f"expected uint8 [B, H, W, 3] and B positions, got {images.dtype} {list(images.shape)} "
                f"and {len(positions)} positions"
            )
        return uniforms(key_of(self._seed, purpose, *self._coordinates), positions, num_draws)

    def _flip(self, draws: Draws) -> I32Array:
        return ((draws[:, _FLIP] < 0.5) & self._weak.flip).astype(np.int32)

    def _place(self, draws: Draws, images: Tensor) -> npt.NDArray[np.generic]:
        """Where the weak view is cut from: affine maps [B, 6] with `crop: resized`, else the crops' corners [B, 2]."""
        if self._weak.crop == "resized":
            height, width = images.shape[1:3]
            return _resized_crop(draws, height, width, self._size, self._weak.min_area, self._flip(draws))
        reach = 2 * self._padding + 1
        return (draws[:, [_TOP, _LEFT]] * reach).astype(np.int32)

    @property
    def _padding(self) -> int:
        return self._weak.padding if self._weak.crop == "pad" else 0

    def _crop(self, images: Tensor, place: Tensor, flip: Tensor) -> Tensor:
        if self._weak.crop == "resized":
            return resample(images, place, self._size)
        return crop(fit(images, self._size), place, flip != 0, self._padding)

    def _normalize(self, view: Tensor) -> Tensor:
        # Multiply and add stay apart: a fused one may round differently at the end of a batch than within it.
        flat = view.flatten(1).float().mul_(self._scale).add_(self._shift)
        return flat.view(view.shape).permute(0, 3, 1, 2)


def _resized_crop(draws: Draws, height: int, width: int, size: int, min_area: float, flip: I32Array) -> F32Array:
    """Affine maps [B, 6] of crops with a random area and aspect ratio, mirrored where `flip` [B] says so.

    The area is uniform, and the aspect ratio is log-uniform in 3/4..4/3 (Szegedy 2015, section 6). A side that would
    exceed the image's is cut to it: others draw again until a crop fits, but here the number of draws is fixed.
    """
    area = min_area + (1 - min_area) * draws[:, _AREA]
    low, high = map(math.log, _ASPECTS)
    aspect = np.exp(low + (high - low) * draws[:, _ASPECT])
    crop_width = np.minimum(np.sqrt(area * height * width * aspect), width)
    crop_height = np.minimum(np.sqrt(area * height * width / aspect), height)
    left, top = draws[:, _LEFT] * (width - crop_width), draws[:, _TOP] * (height - crop_height)
    step_x, step_y = crop_width / size, crop_height / size
    zero = np.zeros_like(area)
    mirrored = flip != 0
    columns = np.where(mirrored, -step_x, step_x), zero, np.where(mirrored, left + crop_width, left)
    return np.stack([*columns, zero, step_y, top], axis=1).astype(np.float32)


def _upload(*arrays: npt.NDArray[np.generic], device: torch.device) -> list[Tensor]:
    """Arrays of int32 or float32 as tensors on the device, by one transfer that the host does not wait for."""
    buffer = torch.from_numpy(np.concatenate([np.ascontiguousarray(array).view(np.int32).ravel() for array in arrays]))
    if device.type == "cuda":
        buffer = buffer.pin_memory()
    parts = buffer.to(device, non_blocking=True).split_with_sizes([array.size for array in arrays])
    types = [torch.float32 if array.dtype == np.float32 else torch.int32 for array in arrays]
    return [part.view(dtype).view(array.shape) for part, dtype, array in zip(parts, types, arrays, strict=True)]
