"""RandAugment on the device: each sample has its own ops, and each op runs once a layer, on all its samples.

Cubuk et al. 2020, "RandAugment"; with the op list and ranges of Noisy Student's code (see docs/augmentation.md). The
host sorts the batch by op for each layer, so the device gathers rows, runs every op on a slice, and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.views import color
from pipeline.views.geometry import resample

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPS = (
    *GEOMETRIC,
    *("identity", "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
)
"""The op list, in the order of the draws. The geometric ops share one resampling."""
SMALL = 64
"""Images up to this many pixels a side have the small ranges of Noisy Student's SVHN recipe."""

_NUM_GROUPS = len(OPS) - len(GEOMETRIC) + 1
_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Levels:
    """What a magnitude means for each op. Signs are drawn; `factors` is what the two signs give."""

    degrees: float
    shear: float
    pixels: float
    bits: int
    threshold: int
    added: int
    factors: tuple[float, float]


def levels_at(magnitude: float, size: int) -> Levels:
    """The levels at a magnitude in the papers' units (10 is the nominal maximum) for images of `size` pixels a side.

    All of them grow from the identity at 0, and go on above 10 up to the limit after which an op would leave nothing.
    """
    share = magnitude / 10
    reach = size / 8 if size <= SMALL else size * 100 / 224
    return Levels(
        degrees=min(30 * share, 90.0),
        shear=min(0.3 * share, 0.9),
        pixels=min(reach * share, size / 2),
        bits=max(8 - round(4 * share), 2),
        threshold=max(256 - round(256 * share), 0),
        added=min(round(110 * share), 128),
        factors=(max(1 - 0.9 * share, 0.1), 1 + 0.9 * share),
    )


@dataclass(frozen=True)
class Plan:
    """Who does what: the host's part of one call, L layers on B samples."""

    order: npt.NDArray[np.int32]
    """[L+1, B]: before each layer, gather these rows to have the samples in the order of their ops; the last restores
    the order of the batch."""
    parameters: npt.NDArray[np.float32]
    """[L, B, 6], in the layer's order: the affine map of a geometric op, or the factor of an enhancing one."""
    counts: tuple[tuple[int, ...], ...]
    """[L, groups]: samples of each op; the geometric ones are one group."""


class RandAugment:
    """N ops at magnitude M on square uint8 images; see `levels_at` for the units."""

    def __init__(self, num_ops: int, magnitude: float, size: int):
        self.num_ops = num_ops
        self.levels = levels_at(magnitude, size)
        self._parameters = _parameter_table(self.levels, size)

    def plan(self, ops: npt.NDArray[np.int64], signs: npt.NDArray[np.int64]) -> Plan:
        """Plan given ops (indices into `OPS`) and signs (0: minus, 1: plus), both [B, L]."""
        batch, num_layers = ops.shape
        groups = np.maximum(ops - len(GEOMETRIC) + 1, 0)
        order = np.empty((num_layers + 1, batch), np.int32)
        parameters = np.empty((num_layers, batch, 6), np.float32)
        place = np.arange(batch)  # where the sample of each batch row is now
        for layer in range(num_layers):
            samples = np.argsort(groups[:, layer], kind="stable")
            order[layer] = place[samples]
            parameters[layer] = self._parameters[ops[samples, layer], signs[samples, layer]]
            place[samples] = np.arange(batch)
        order[-1] = place
        counts = tuple(tuple(np.bincount(column, minlength=_NUM_GROUPS).tolist()) for column in groups.T)
        return Plan(order, parameters, counts)

    def draw(self, uniforms: npt.NDArray[np.float64]) -> Plan:
        """Plan from uniform numbers [B, 2L]: op and sign of each layer."""
        ops = (uniforms[:, 0::2] * len(OPS)).astype(np.int64)
        return self.plan(ops, (uniforms[:, 1::2] * 2).astype(np.int64))

    def apply(self, images: Tensor, order: Tensor, parameters: Tensor, counts: tuple[tuple[int, ...], ...]) -> Tensor:
        """Run a plan whose arrays are on the device. uint8 [B, S, S, 3] to the same."""
        for layer, layer_counts in enumerate(counts):
            parts = images.index_select(0, order[layer]).split_with_sizes(layer_counts)
            groups = zip(self._kernels(), parts, parameters[layer].split_with_sizes(layer_counts), strict=True)
            images = torch.cat([kernel(part, values) for kernel, part, values in groups if len(part)])
        return images.index_select(0, order[-1])

    def _kernels(self) -> tuple[Callable[[Tensor, Tensor], Tensor], ...]:
        """One function of (images, parameters) for each group, in the order of `OPS`."""
        levels = self.levels
        return (
            lambda images, affine: resample(images, affine, images.shape[1]),
            lambda images, _: images,
            lambda images, _: color.autocontrast(images),
            lambda images, _: color.equalize(images),
            lambda images, _: color.invert(images),
            lambda images, _: color.posterize(images, levels.bits),
            lambda images, _: color.solarize(images, levels.threshold),
            lambda images, _: color.solarize_add(images, levels.added),
            lambda images, factor: color.color(images, factor[:, 0]),
            lambda images, factor: color.contrast(images, factor[:, 0]),
            lambda images, factor: color.brightness(images, factor[:, 0]),
            lambda images, factor: color.sharpness(images, factor[:, 0]),
        )


def rotation(degrees: float, size: int) -> tuple[float, ...]:
    """The affine map that turns an image by `degrees` counterclockwise about its centre (PIL's Image.rotate)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle = size / 2
    return (cosine, -sine, middle * (1 - cosine + sine), sine, cosine, middle * (1 - sine - cosine))


def _parameter_table(levels: Levels, size: int) -> npt.NDArray[np.float32]:
    """[op, sign, 6]: with one magnitude, an op has only two settings."""
    table = np.zeros((len(OPS), 2, 6), np.float32)
    for index, sign in enumerate((-1, 1)):
        shear, pixels = sign * levels.shear, sign * levels.pixels
        maps = {
            "rotate": rotation(sign * levels.degrees, size),
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, pixels, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, pixels),
        }
        for name in GEOMETRIC:
            table[OPS.index(name), index] = maps[name]
        for name in ("color", "contrast", "brightness", "sharpness"):
            table[OPS.index(name), index, 0] = levels.factors[index]
    return table
