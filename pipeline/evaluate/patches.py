"""The patches of an image over which a model's probabilities are averaged: ten of them, at several scales.

Shapes: B images, R the side at which they are read, S the side that the model sees, P = the pixels of all scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.arrays import I64Array
from pipeline.config import Data
from pipeline.config.evaluate import Crops, Patches
from pipeline.errors import UserError
from pipeline.models.format import ModelInfo, read_side
from pipeline.shards.dataset import Dataset
from pipeline.shards.decode import Pixels
from pipeline.shards.reader import Reader


def patches_of(section: Patches) -> dict[str, Any]:
    """The arguments of a `Predictor` that sees images as a section says."""
    return {name: getattr(section, name) for name in ("flip", "crops", "scales")}


def as_text(section: Patches) -> str:
    """What a model sees beside mirror images, in words that fingerprints have; `center` is the default."""
    scales = "" if section.scales == (1.0,) else f" at {','.join(map(repr, section.scales))}"
    return f"{section.crops}{scales}"


def in_fingerprint(section: Patches) -> dict[str, str]:
    """{"view": what a model sees}, or nothing if that is the centre alone, as before there was a choice."""
    text = as_text(section)
    return {} if text == "center" else {"view": text}


def sides_of(size: int, crop_pct: float, crops: Crops, scales: Sequence[float]) -> tuple[int, ...]:
    """The sides R at which images are read for a model of input size S, one per scale, of which patches of S are cut.

    Raises:
        UserError: one is below S, or of ten patches all would be the same.
    """
    sides = tuple(read_side(size, crop_pct, scale) for scale in scales)
    if (least := min(sides)) < size:
        scale = scales[sides.index(least)]
        raise UserError(
            f"`scales`: {scale} shows the model images of {least} pixels, below its own {size}; raise it to at least "
            f"{crop_pct:g}"
        )
    if crops == "ten" and max(sides) == size:
        raise UserError(
            f"`crops` is ten, but images are read at the model's own size of {size} pixels, so all patches are the "
            "whole image; set scales, e.g. to [1.143] (256 of 224 pixels), or crop_pct below 1"
        )
    return sides


def num_patches(section: Patches, info: ModelInfo) -> int:
    """The patches per image that a model sees, each of which is a forward pass, as a section says."""
    sides = sides_of(info.input_size[-1], info.crop_pct, section.crops, section.scales)
    ten = section.crops == "ten"
    places = sum(5 if ten and side > info.input_size[-1] else 1 for side in sides)
    return places * (2 if ten or section.flip else 1)


class Pyramid:
    """Reads images at several sizes, as uint8 [B, P, 3]: the pixels of one size after those of another."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def read(self, rows: I64Array) -> Pixels:
        """The images of rows [B]."""
        return packed([reader.read(rows) for reader in self.readers])


def reader_at(info: ModelInfo, dataset: Dataset, data: Data, sides: Sequence[int]) -> Reader | Pyramid:
    """The reader that reads the images of a data set as a model sees them, at each of these sides."""
    readers = [Reader(dataset, side, data, interpolation=info.interpolation, crop_mode=info.crop) for side in sides]
    return readers[0] if len(readers) == 1 else Pyramid(readers)


def packed(levels: Sequence[Pixels]) -> Pixels:
    """Images uint8 [..., R, R, 3] of several sides R as one array [..., P, 3]; those of one side stay as they are."""
    if len(levels) == 1:
        return levels[0]
    return np.concatenate([level.reshape(*level.shape[:-3], -1, 3) for level in levels], axis=-2)


def unpacked(images: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """What `packed` made of images [B, R, R, 3] of these sides."""
    if len(sides) == 1:
        return [images]
    parts = images.split_with_sizes([side * side for side in sides], dim=1)
    return [part.view(len(images), side, side, 3) for part, side in zip(parts, sides, strict=True)]


def cut(images: Tensor, side: int, size: int, crops: Crops) -> Iterator[Tensor]:
    """Yield the patches [B, S, S, 3] of images [B, R, R, 3] of one side: the centre, as timm cuts it, and with `ten`
    the four corners (Krizhevsky 2012, 4.1), where they are others. Images of another side are left whole."""
    margin = side - size if images.shape[1] == side else 0
    if not margin:
        yield images
        return
    middle = round(margin / 2)
    corners = [(top, left) for top in (0, margin) for left in (0, margin)] if crops == "ten" else []
    for top, left in ((middle, middle), *corners):
        yield images[:, top : top + size, left : left + size]
