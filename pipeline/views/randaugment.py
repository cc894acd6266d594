"""RandAugment (Cubuk et al. 2020) on the device: each sample has its own ops, and each op runs once per layer.

For each layer the host sorts the batch by op. The device then gathers rows and runs every op on a slice, and never
waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import F32Array, F64Array, I32Array, I64Array
from pipeline.views.ops import GEOMETRIC, TABLE, Levels, levels_at, rotation

OPS = tuple(op.name for op in TABLE)
"""The names of the ops, in the order of the draws."""
_KERNELS = [kernel for kernel, _ in groupby(TABLE, key=lambda op: op.kernel)]
_GROUP = np.cumsum([0, *(a.kernel is not b.kernel for a, b in pairwise(TABLE))])
"""For each op, the place of its kernel in `_KERNELS`."""


@dataclass(frozen=True)
class Plan:
    """The host's part of one call: which of B samples have which op, in each of L layers."""

    order: I32Array
    """[L+1, B]: the rows to gather before each layer, which sorts the samples by their op; the last ones restore the
    order of the batch."""
    parameters: F32Array
    """[L, B, 6], in the order of the layer: the affine map of a geometric op, or the factor of an enhancing one."""
    counts: tuple[tuple[int, ...], ...]
    """[L, groups]: the number of samples per kernel; all geometric ops are one group."""


class RandAugment:
    """Apply N ops at magnitude M to square images, uint8 [B, S, S, 3]; see `levels_at` for the units."""

    def __init__(self, num_ops: int, magnitude: float, size: int):
        self.num_ops = num_ops
        self.levels = levels_at(magnitude, size)
        self._parameters = _parameter_table(self.levels, size)

    def plan(self, ops: I64Array, signs: I64Array) -> Plan:
        """The plan for given ops (indices into `OPS`) and signs (0: minus, 1: plus), both [B, L]."""
        batch, num_layers = ops.shape
        groups = _GROUP[ops]
        order = np.empty((num_layers + 1, batch), np.int32)
        parameters = np.empty((num_layers, batch, 6), np.float32)
        place = np.arange(batch)  # where the sample of each batch row is now
        for layer in range(num_layers):
            samples = np.argsort(groups[:, layer], kind="stable")
            order[layer] = place[samples]
            parameters[layer] = self._parameters[ops[samples, layer], signs[samples, layer]]
            place[samples] = np.arange(batch)
        order[-1] = place
        counts = tuple(tuple(np.bincount(column, minlength=len(_KERNELS)).tolist()) for column in groups.T)
        return Plan(order, parameters, counts)

    def draw(self, uniforms: F64Array) -> Plan:
        """The plan for uniform numbers [B, 2L]: for each layer one number chooses the op, the next one its sign."""
        ops = (uniforms[:, 0::2] * len(OPS)).astype(np.int64)
        return self.plan(ops, (uniforms[:, 1::2] * 2).astype(np.int64))

    def apply(self, images: Tensor, order: Tensor, parameters: Tensor, counts: tuple[tuple[int, ...], ...]) -> Tensor:
        """Run a plan whose arrays are on the device: uint8 [B, S, S, 3] -> uint8 [B, S, S, 3]."""
        for layer, layer_counts in enumerate(counts):
            parts = images.index_select(0, order[layer]).split_with_sizes(layer_counts)
            groups = zip(_KERNELS, parts, parameters[layer].split_with_sizes(layer_counts), strict=True)
            done = [kernel(part, values, self.levels) for kernel, part, values in groups if len(part)]
            images = torch.cat(done)
        return images.index_select(0, order[-1])


def _parameter_table(levels: Levels, size: int) -> F32Array:
    """The numbers for each kernel, [op, sign, 6]: at one magnitude an op has only two settings."""
    table = np.zeros((len(TABLE), 2, 6), np.float32)
    for number, op in enumerate(TABLE):
        for place, sign in enumerate((-1, 1)):
            values = op.values(levels, size, sign)
            table[number, place, : len(values)] = values
    return table


__all__ = ["GEOMETRIC", "OPS", "Levels", "Plan", "RandAugment", "levels_at", "rotation"]
