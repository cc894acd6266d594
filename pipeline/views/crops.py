"""Random crops of random size, cut from the stored images while they are decoded.

A crop is drawn from the whole image at its stored resolution and resized from there, antialiased, so that nothing is
resized twice. The numbers behind it are a function of (seed, round, number of the view, stream position).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.arrays import F64Array, I64Array, U64Array
from pipeline.config import Interpolation, WeakView
from pipeline.randomness import key_of, uniforms
from pipeline.shards.decode import Pixels, decode
from pipeline.shards.jpeg import plain_size
from pipeline.shards.reader import Reader

CROPS = "whole image"
"""What crops are cut from. It is part of the fingerprint of a training with such crops; change it when they change."""
ASPECTS = (3 / 4, 4 / 3)
NUM_TRIES = 10
NUM_DRAWS = 2 * NUM_TRIES + 2
_GAP = 2
"""A JPEG is decoded at a size at which each crop is at least so many times as large as its view. That leaves the resize
enough to antialias."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ResizedCrops:
    """Makes the crops of the images of a training."""

    size: int
    """The side of a view in pixels."""
    weak: WeakView
    """The weak view, whose `crop` is `resized` or `scale`."""
    interpolation: Interpolation
    key_coordinates: tuple[int, ...]
    """The run's seed, then whatever tells these crops from others, such as the round."""
    num_views: int = 1
    """How many crops of each image there are, which are independent."""

    def read(self, reader: Reader, rows: I64Array, positions: U64Array) -> Pixels:
        """The crops of these rows, uint8 [B, S, S, 3], or [B, V, S, S, 3] if there are several of each.

        Raises:
            UserError: an image is damaged in its shard.
        """
        draws = self._draws(positions)
        shape = (self.num_views, self.size, self.size, 3)
        crops = reader.read_files(rows, shape, lambda data, name, place: self.cut(data, name, draws[place]))
        return crops if self.num_views > 1 else crops[:, 0]

    def _draws(self, positions: U64Array) -> F64Array:
        """The uniform numbers [B, V, NUM_DRAWS] of the images at these positions."""
        seed, *coordinates = self.key_coordinates
        views = [
            uniforms(key_of(seed, "crop", *coordinates, view), positions, NUM_DRAWS) for view in range(self.num_views)
        ]
        return np.stack(views, axis=1)

    def cut(self, data: bytes, name: str, draws: F64Array) -> Pixels:
        """The crops uint8 [V, S, S, 3] of an image file with draws [V, NUM_DRAWS].

        Raises:
            UserError: the image is damaged; the message begins with `name`.
        """
        size, at_least = plain_size(data), 0
        if size is not None:
            smallest = min(min(box[2:]) for box in self._boxes(draws, *size))
            at_least = math.ceil(_GAP * self.size * min(size) / smallest)
        pixels = decode(data, name, at_least=at_least)
        height, width = size or pixels.shape[:2]
        scale = pixels.shape[0] / height, pixels.shape[1] / width
        return np.stack([self._resized(pixels, _scaled(box, *scale)) for box in self._boxes(draws, height, width)])

    def _boxes(self, draws: F64Array, height: int, width: int) -> list[Box]:
        weak = self.weak
        if weak.crop == "scale":
            scales = (weak.min_scale, weak.max_scale)
            return [scaled_crop(row.tolist(), height, width, self.size, scales) for row in draws]
        return [resized_crop(row.tolist(), height, width, weak.min_area) for row in draws]

    def _resized(self, pixels: Pixels, box: Box) -> Pixels:
        part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        # For uint8 torch has Pillow's algorithm with vector instructions: 2.5 times as fast, off by 2 at most.
        planes = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None]
        view = F.interpolate(planes, (self.size, self.size), mode=self.interpolation, antialias=True)
        return view[0].permute(1, 2, 0).numpy()


def resized_crop(draws: Sequence[float], height: int, width: int, min_area: float) -> Box:
    """A box of a random area and aspect ratio at a random place of an image (Szegedy 2015, section 6).

    The area is uniform in min_area..1 of the image's, and the aspect ratio log-uniform in 3/4..4/3. Both are drawn
    again while the box exceeds the image. After ten tries it is the largest box in the centre that has such a ratio.
    That is how torchvision's RandomResizedCrop draws. `draws` are NUM_DRAWS uniform numbers.
    """
    low, high = map(math.log, ASPECTS)
    down, across, *tries = draws
    for area, ratio in zip(tries[::2], tries[1::2], strict=True):
        pixels = height * width * (min_area + (1 - min_area) * area)
        aspect = math.exp(low + (high - low) * ratio)
        box_width, box_height = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = int(down * (height - box_height + 1)), int(across * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_height, box_width = min(height, round(width / ASPECTS[0])), min(width, round(height * ASPECTS[1]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def scaled_crop(draws: Sequence[float], height: int, width: int, size: int, scales: tuple[float, float]) -> Box:
    """The square box of `size` pixels at a random place of an image whose shorter side was resized to L pixels, with L
    a whole number that is uniform in low * size..high * size (Simonyan 2015, 3.1; He 2016, 3.4: L in 256..480 for
    crops of 224).

    Crop and resize change places: the box is in the pixels of the stored image, to a whole number of them. `draws` are
    at least 3 uniform numbers.
    """
    low, high = (round(scale * size) for scale in scales)
    down, across, length = draws[:3]
    side = min(round(size * min(height, width) / (low + int(length * (high - low + 1)))), height, width)
    side = max(side, 1)
    return Box(int(down * (height - side + 1)), int(across * (width - side + 1)), side, side)


def _scaled(box: Box, down: float, across: float) -> Box:
    """The same box in an image that was decoded at a part of its size."""
    top, bottom = round(box.top * down), round((box.top + box.height) * down)
    left, right = round(box.left * across), round((box.left + box.width) * across)
    return Box(top, left, bottom - top, right - left)
