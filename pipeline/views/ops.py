"""The operations of RandAugment, one row each: what a magnitude means for an op, and what the op does to pixels.

The technique is from Cubuk et al. 2020; the op list and the ranges are those of Noisy Student's code
(docs/augmentation.md). The draws follow the order of the rows. A new row therefore changes every draw and needs a new
version of the stage kind `train`; a test holds this.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pipeline.views import color
from pipeline.views.geometry import resample

SMALL, LARGE = 64, 224
"""Images of up to SMALL pixels per side are translated by the share of Noisy Student's SVHN recipe (4 of 32 pixels),
those of LARGE and more by that of its ImageNet recipe (100 of 224), and others by one in between."""


@dataclass(frozen=True)
class Levels:
    """What a magnitude means for each op. The sign is drawn; `factors` holds the values of minus and plus."""

    degrees: float
    shear: float
    pixels: float
    bits: int
    threshold: int
    added: int
    factors: tuple[float, float]


def levels_at(magnitude: float, size: int) -> Levels:
    """The levels of a magnitude for images of `size` pixels per side. In the papers' units 10 is the nominal maximum.

    At 0 each op is the identity. Above 10 the levels grow on, up to limits beyond which an op would leave nothing.
    """
    share = magnitude / 10
    nearness = min(max((size - SMALL) / (LARGE - SMALL), 0.0), 1.0)
    reach = size * ((1 - nearness) / 8 + nearness * 100 / 224)
    return Levels(
        degrees=min(30 * share, 90.0),
        shear=min(0.3 * share, 0.9),
        pixels=min(reach * share, size / 2),
        bits=max(8 - round(4 * share), 2),
        threshold=max(256 - round(256 * share), 0),
        added=min(round(110 * share), 128),
        factors=(max(1 - 0.9 * share, 0.1), 1 + 0.9 * share),
    )


Kernel = Callable[[Tensor, Tensor, Levels], Tensor]
"""(images uint8 [n, S, S, 3], values float32 [n, 6], levels) -> images of the same shape."""


@dataclass(frozen=True)
class Op:
    """One operation of RandAugment."""

    name: str
    kernel: Kernel
    """It runs on all samples that drew the op. Neighbours in the table that share a kernel run together."""
    values: Callable[[Levels, int, int], tuple[float, ...]] = lambda levels, size, sign: ()
    """(levels, side of the image, sign -1 or 1) -> up to 6 numbers for the kernel."""


def rotation(degrees: float, size: int) -> tuple[float, ...]:
    """The affine map that turns an image by `degrees` counterclockwise about its centre (PIL's Image.rotate)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = size / 2
    return (cosine, -sine, middle * (1 - cosine + sine), sine, cosine, middle * (1 - sine - cosine))


def _affine(images: Tensor, values: Tensor, levels: Levels) -> Tensor:
    return resample(images, values, images.shape[1])


def _enhance(op: Callable[[Tensor, Tensor], Tensor], images: Tensor, values: Tensor, levels: Levels) -> Tensor:
    return op(images, values[:, 0])


def _factor(levels: Levels, size: int, sign: int) -> tuple[float, ...]:
    return (levels.factors[sign > 0],)


TABLE: tuple[Op, ...] = (
    Op("rotate", _affine, lambda levels, size, sign: rotation(sign * levels.degrees, size)),
    Op("shear_x", _affine, lambda levels, size, sign: (1, sign * levels.shear, 0, 0, 1, 0)),
    Op("shear_y", _affine, lambda levels, size, sign: (1, 0, 0, sign * levels.shear, 1, 0)),
    Op("translate_x", _affine, lambda levels, size, sign: (1, 0, sign * levels.pixels, 0, 1, 0)),
    Op("translate_y", _affine, lambda levels, size, sign: (1, 0, 0, 0, 1, sign * levels.pixels)),
    Op("identity", lambda images, values, levels: images),
    Op("autocontrast", lambda images, values, levels: color.autocontrast(images)),
    Op("equalize", lambda images, values, levels: color.equalize(images)),
    Op("invert", lambda images, values, levels: color.invert(images)),
    Op("posterize", lambda images, values, levels: color.posterize(images, levels.bits)),
    Op("solarize", lambda images, values, levels: color.solarize(images, levels.threshold)),
    Op("solarize_add", lambda images, values, levels: color.solarize_add(images, levels.added)),
    Op("color", partial(_enhance, color.color), _factor),
    Op("contrast", partial(_enhance, color.contrast), _factor),
    Op("brightness", partial(_enhance, color.brightness), _factor),
    Op("sharpness", partial(_enhance, color.sharpness), _factor),
)
GEOMETRIC = tuple(op.name for op in TABLE if op.kernel is _affine)
"""The names of the ops that share one resampling."""
