"""mixup and CutMix: images of a batch are mixed with each other, and so are their targets.

All draws are functions of stream positions. The partner of an image also depends on its micro-batch and rank, from
which it is taken, so N ranks mix other pairs than one process does.
Shapes: B images of a micro-batch, S their side, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F64Array, I64Array, U64Array
from pipeline.config import Cutmix, Mixup
from pipeline.randomness import key_of, uniforms
from pipeline.train.batches import to_device

_TRIES = 24
"""With alpha <= 1 the probability that all tries of a draw from Beta(alpha, alpha) fail is at most 2^-24."""


class Mixing:
    """Mixes the micro-batches of one training by mixup, CutMix or both.

    Args:
        mixup: The settings of mixup; None turns it off.
        cutmix: The settings of CutMix; None turns it off.
        seed: The run's seed.
        round: The round.
    """

    def __init__(self, mixup: Mixup | None, cutmix: Cutmix | None, *, seed: int, round: int) -> None:
        self.mixup, self.cutmix = mixup, cutmix
        self.share_mixup = mixup.probability if mixup else 0.0
        self.share_cutmix = cutmix.probability if cutmix else 0.0
        self._keys = {name: key_of(seed, "mixing", round, name) for name in ("choice", "partner", "mixup", "cutmix")}

    def __call__(self, images: Tensor, targets: Tensor, positions: U64Array) -> tuple[Tensor, Tensor]:
        """Mix images float32 [B, 3, S, S] and targets [B, C] at positions [B]; both keep their shapes."""
        size = images.shape[-1]
        choice = uniforms(self._keys["choice"], positions)[:, 0]
        weight, boxes = np.ones(len(positions)), np.zeros((len(positions), 4), np.int64)
        if self.cutmix is not None:
            share = beta_draws(self._keys["cutmix"], positions, self.cutmix.alpha)
            chosen = choice < self.share_cutmix
            boxes[chosen] = cut_boxes(self._keys["cutmix"], positions, share, size)[chosen]
        if self.mixup is not None:
            chosen = (choice >= self.share_cutmix) & (choice < self.share_cutmix + self.share_mixup)
            weight[chosen] = beta_draws(self._keys["mixup"], positions, self.mixup.alpha)[chosen]
        drawn = (torch.from_numpy(weight).float(), torch.from_numpy(partners(self._keys["partner"], positions)))
        weight_B, partner, boxes_B4 = to_device(images.device, *drawn, torch.from_numpy(boxes))
        images, targets = mix(images, targets, weight_B, partner)
        return cut(images, targets, boxes_B4, partner) if self.cutmix is not None else (images, targets)


def mix(images: Tensor, targets: Tensor, weight: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """mixup: weight * own + (1 - weight) * partner's, for images and targets alike (Zhang 2018, eq. 1).

    Args:
        images: float32 [B, 3, S, S].
        targets: float32 [B, C].
        weight: float32 [B], the share of itself that each image keeps.
        partner: int64 [B], the row that each image is mixed with.
    """
    w = weight[:, None, None, None]
    return images * w + images[partner] * (1 - w), targets * weight[:, None] + targets[partner] * (1 - weight[:, None])


def cut(images: Tensor, targets: Tensor, boxes: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix: replace a box of each image by its partner's, and weight targets by the areas (Yun 2019, eq. 1).

    Args:
        images: float32 [B, 3, S, S].
        targets: float32 [B, C].
        boxes: int64 [B, 4]: top, bottom, left and right; an empty box changes nothing.
        partner: int64 [B], the row that each box is taken from.
    """
    size = images.shape[-1]
    line = torch.arange(size, device=images.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    inside = ((line >= top) & (line < bottom))[:, :, None] & ((line >= left) & (line < right))[:, None, :]
    stays = 1 - inside.flatten(1).float().mean(1, keepdim=True)
    mixed = torch.where(inside[:, None], images[partner], images)
    return mixed, targets * stays + targets[partner] * (1 - stays)


def beta_draws(key: int, positions: U64Array, alpha: float) -> F64Array:
    """One draw from Beta(alpha, alpha) per position, [B], for alpha in (0, 1], by Jöhnk's rejection (1964)."""
    powers = uniforms(key, positions, 2 * _TRIES).reshape(len(positions), _TRIES, 2) ** (1 / alpha)
    total = powers.sum(2)
    first = np.argmax((total > 0) & (total <= 1), axis=1)
    rows = np.arange(len(positions))
    return np.asarray(powers[rows, first, 0] / np.maximum(total[rows, first], np.finfo(np.float64).tiny))


def cut_boxes(key: int, positions: U64Array, share: F64Array, size: int) -> I64Array:
    """Boxes int64 [B, 4] of area 1 - share [B] around a uniform pixel, clipped at the border (Yun 2019, eq. 2)."""
    centre = (uniforms(key, positions, 2 * _TRIES + 2)[:, -2:] * size).astype(np.int64)
    half = (size * np.sqrt(1 - share) / 2).astype(np.int64)[:, None]
    low, high = np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)


def partners(key: int, positions: U64Array) -> I64Array:
    """A random permutation of the batch, int64 [B]: the order of one draw per position. It may fix some rows."""
    return np.argsort(uniforms(key, positions)[:, 0], kind="stable").astype(np.int64)
