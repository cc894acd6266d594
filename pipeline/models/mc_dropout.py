"""Predictions with dropout on: samples of a network that average to another answer than the network without it.

Shapes: B images, C classes, S pixels per side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.arrays import I64Array
from pipeline.errors import UserError
from pipeline.models.forward import body_of
from pipeline.randomness import key_of, uniforms

_NUM_DIMS: dict[Callable[..., Any], int | None] = {F.dropout: None, F.dropout1d: 2, F.dropout2d: 2, F.dropout3d: 2}
"""Dropout -> how many of the first dimensions have draws of their own: all, or those of images and channels."""


def sample_logits(
    model: nn.Module, images: Tensor, dtype: torch.dtype | None, positions: I64Array, num_samples: int
) -> list[Tensor]:
    """The logits, float32 [B, C], of `num_samples` forward passes with dropout on (Gal and Ghahramani 2016, section 4).

    All else is in eval mode: BatchNorm has its statistics, and no path or weight is dropped. Where dropout is in the
    head alone, the body, which it does not touch, runs once.

    Args:
        model: The network, in eval mode, with the dropout that it was trained with.
        images: Images, normalized, [B, 3, S, S].
        dtype: What the body runs in; None for fp32.
        positions: The row of each image in its data set, [B], by which its draws are told apart.
        num_samples: The number of passes.

    Raises:
        UserError: the network has no dropout.
    """
    logits: list[Tensor] = []
    body, is_below_head = None, True
    for sample in range(num_samples):
        with PositionedDropout(positions, sample) as dropout:
            if is_below_head:
                body = body_of(model, images, dtype)
                is_below_head = dropout.num_calls > 0
            logits.append(model.forward_head(body))  # type: ignore[operator]
        if not dropout.num_calls:
            raise UserError(
                f"this {type(model).__name__} was trained without `dropout`, `block_dropout` and `dropout_at`, which "
                "are sampled (drop_connect is not); evaluate it without mc_dropout, or train it with one of them (if "
                "an earlier version did, its model.json lacks that: add the key)"
            )
    return logits


class PositionedDropout(TorchFunctionMode):
    """While it is entered, every dropout is on, and its masks are a function of image, sample and layer alone.

    So an image has the same masks in any batch, at any place of it. Inverted dropout: what stays is scaled by 1/(1-p).
    The masks are drawn on the host and are put on the device, which waits for nothing.

    Args:
        positions: The row of each image of the batch, [B].
        sample: The number of the sample.
    """

    def __init__(self, positions: I64Array, sample: int) -> None:
        super().__init__()
        self.positions, self.sample = positions, sample
        self.num_calls = 0
        """The dropouts so far."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        if func not in _NUM_DIMS:
            return func(*args, **(kwargs or {}))
        return self._drop(_NUM_DIMS[func], *args, **(kwargs or {}))

    def _drop(
        self, num_dims: int | None, features: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Features [B, ...] without a share p of them. The first dimension may be several per image, side by side."""
        if not p:
            return features
        own = features.shape[:num_dims]
        shape = (*own, *[1] * (features.dim() - len(own)))
        key = key_of(0, "mc_dropout", self.sample, self.num_calls)
        self.num_calls += 1
        draws = uniforms(key, self.positions, math.prod(shape) // len(self.positions))
        stays = torch.from_numpy((draws >= p) / (1 - p if p < 1 else 1.0)).reshape(shape)
        if features.device.type == "cuda":
            stays = stays.pin_memory()  # from any other memory the host would wait for all queued work
        return features * stays.to(features.device, features.dtype, non_blocking=True)
