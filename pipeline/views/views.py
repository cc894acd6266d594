"""The views of an image that a model sees: weak, strong and centre, made in batches on the device.

The numbers behind a view are a function of (seed, round, purpose, stream position). Philox draws them on the host, and
one upload brings them to the device, so the device never waits for the host (invariants 1 and 8 of the design).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.arrays import F64Array, I32Array, U64Array
from pipeline.config import StrongView, WeakView
from pipeline.errors import UserError
from pipeline.randomness import Purpose, key_of, uniforms
from pipeline.views.geometry import crop, cut_out, fit, mirror
from pipeline.views.jitter import ColorNoise, num_at_once
from pipeline.views.randaugment import RandAugment

# Columns of the draws. Each number has its own column, so that turning one kind of noise off changes no other.
_TOP, _LEFT, _FLIP, _, _, _CUT_TOP, _CUT_LEFT = range(7)
_RANDAUGMENT = 8

Draws = F64Array


class Views:
    """Makes views of image batches.

    Images are uint8 [B, H, W, 3] on the device. With `crop: resized` or `scale` they are crops already, which
    `ResizedCrops` cut, or [B, 2, H, W, 3] where the weak view has another crop than the strong one. Positions are
    uint64 [B] on the host: places in a stream, or other numbers that tell the samples apart. A view is float32
    [B, 3, S, S], channels_last, normalized with `mean` and `std`. Each row of a view depends on the image and the
    position of that row only, not on the rest of the batch, except for the rounding of whitening.

    Args:
        weak: The settings of crop, flip and color noise.
        strong: The settings of RandAugment and cutout, which come on top of the weak view.
        image_size: The side S of a view in pixels.
        mean: The mean of each of the three channels, in units of 0..1, or of each pixel, [S, S, 3].
        std: The standard deviation of each of the three channels, in the same units.
        device: Where the images are.
        key_coordinates: The run's seed, then whatever tells these views from others, such as the round.
        whitening: A matrix [D, D] that multiplies the normalized numbers of an image, D = 3 S^2 in the order of
            [S, S, 3]; None without.
        components: The components of the colors of the training images [3, 3], if `weak.pca_color` is on.

    Raises:
        UserError: the cutout is larger than the image.
    """

    def __init__(
        self,
        weak: WeakView,
        strong: StrongView,
        image_size: int,
        *,
        mean: Sequence[float] | Tensor,
        std: Sequence[float],
        device: torch.device | str,
        key_coordinates: tuple[int, ...] = (0,),
        components: F64Array | None = None,
        whitening: Tensor | None = None,
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
        self._noise = ColorNoise(weak, components, key_coordinates)
        self._randaugment = RandAugment(strong.num_ops, strong.magnitude, image_size)
        # Repeated for every pixel, because broadcasting over a last dimension of 3 takes 5 times as long on a CPU.
        deviation = np.array(std, np.float64)
        means = torch.as_tensor(mean, dtype=torch.float64).cpu().numpy()
        scale, shift = (
            torch.from_numpy(np.broadcast_to(each, (image_size, image_size, 3)).ravel().astype(np.float32))
            for each in (1 / (255 * deviation), -means / deviation)
        )
        self._scale, self._shift = scale.to(self._device), shift.to(self._device)
        self._whitening = None if whitening is None else whitening.to(self._device)

    def weak(self, images: Tensor, positions: U64Array, purpose: Purpose = "weak") -> Tensor:
        """The view with a random crop, flip and color noise, float32 [B, 3, S, S]."""
        return self._normalize(self.weak_uint8(images, positions, purpose))

    def strong(self, images: Tensor, positions: U64Array, purpose: Purpose = "strong") -> Tensor:
        """The weak view, then RandAugment, then cutout: float32 [B, 3, S, S]. Other purposes give independent noise."""
        return self._normalize(self.strong_uint8(images, positions, purpose))

    def center(self, images: Tensor) -> Tensor:
        """The view without noise, float32 [B, 3, S, S], for labeling and evaluation."""
        return self._normalize(fit(images, self._size))

    def weak_uint8(self, images: Tensor, positions: U64Array, purpose: Purpose = "weak") -> Tensor:
        """The weak view before normalization, uint8 [B, S, S, 3]."""
        images = _crop_of(images, 0)
        draws = self._draw(images, positions, purpose, _RANDAUGMENT)
        *place, numbers = _upload(*self._place(draws), self._noise.draw(positions, purpose), device=self._device)
        return self._shown(images, place, numbers)

    def strong_uint8(self, images: Tensor, positions: U64Array, purpose: Purpose = "strong") -> Tensor:
        """The strong view before normalization, uint8 [B, S, S, 3]."""
        images = _crop_of(images, -1)
        draws = self._draw(images, positions, purpose, _RANDAUGMENT + 2 * self._strong.num_ops)
        plan = self._randaugment.draw(draws[:, _RANDAUGMENT:])
        squares = (draws[:, [_CUT_TOP, _CUT_LEFT]] * self._size).astype(np.int32) - self._strong.cutout // 2
        color = self._noise.draw(positions, purpose)
        arrays = (*self._place(draws), color, plan.order, plan.parameters, squares)
        *place, numbers, order, parameters, corners = _upload(*arrays, device=self._device)
        view = self._shown(images, place, numbers)
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

    def _place(self, draws: Draws) -> list[I32Array]:
        """What `_crop` needs: the corners [B, 2] and flips [B] of crops, or the rows that are mirrored alone."""
        flip = (draws[:, _FLIP] < 0.5) & self._weak.flip
        if not self._padding:
            return [np.flatnonzero(flip).astype(np.int32)]
        corners = draws[:, [_TOP, _LEFT]] * (2 * self._padding + 1)
        return [corners.astype(np.int32), flip.astype(np.int32)]

    @property
    def _padding(self) -> int:
        return self._weak.padding if self._weak.crop == "pad" else 0

    def _crop(self, images: Tensor, *place: Tensor) -> Tensor:
        images = fit(images, self._size)
        return crop(images, place[0], place[1] != 0, self._padding) if self._padding else mirror(images, *place)

    def _shown(self, images: Tensor, place: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """The weak view: the crop of `_place`, with the color noise of these numbers if there is any."""
        view = self._crop(images, *place)
        return self._noise.apply(view, numbers) if self._noise.is_on else view

    def _normalize(self, view: Tensor) -> Tensor:
        flat = view.flatten(1)
        floats = _empty(flat.shape, self._device)
        num = num_at_once(flat)
        # Multiply and add stay apart: a fused one may round differently at the end of a batch than within it.
        for part, pixels in zip(floats.split(num), flat.split(num), strict=True):
            part.copy_(pixels).mul_(self._scale).add_(self._shift)
        if self._whitening is not None:
            floats = floats @ self._whitening
        return floats.view(view.shape).permute(0, 3, 1, 2)


def _empty(shape: torch.Size, device: torch.device) -> Tensor:
    """Uninitialized float32. On a host by numpy, which asks for huge pages: their first use takes half of the time."""
    return torch.from_numpy(np.empty(shape, np.float32)) if device.type == "cpu" else torch.empty(shape, device=device)


def _crop_of(images: Tensor, view: int) -> Tensor:
    """The crop of a view, where images come with several, [B, V, H, W, 3]."""
    return images[:, view] if images.ndim == 5 else images


def _upload(*arrays: npt.NDArray[np.generic], device: torch.device) -> list[Tensor]:
    """Arrays of int32 or float32 as tensors on the device, by one transfer that the host does not wait for."""
    buffer = torch.from_numpy(np.concatenate([np.ascontiguousarray(array).view(np.int32).ravel() for array in arrays]))
    if device.type == "cuda":
        buffer = buffer.pin_memory()
    parts = buffer.to(device, non_blocking=True).split_with_sizes([array.size for array in arrays])
    types = [torch.float32 if array.dtype == np.float32 else torch.int32 for array in arrays]
    return [part.view(dtype).view(array.shape) for part, dtype, array in zip(parts, types, arrays, strict=True)]
