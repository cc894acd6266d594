"""What is subtracted from the pixels that a model sees, by what they are divided, and how they are decorrelated.

Two kinds of preprocessing are arrays: the mean image and the matrix of PCA whitening. They are buffers of the network,
below `preprocessing.`, so that checkpoints, averages and model.safetensors have them without a word; its forward pass
does not read them. All else is numbers in model.json.

Shapes: S the side of the model's input, D = 3 S^2 its numbers, in the order of [S, S, 3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

PREFIX = "preprocessing."
"""The names of the buffers begin with it."""


class Normalization(NamedTuple):
    """How pixels become the input of a network: (pixels / 255 - mean) / std, then times the whitening."""

    mean: Sequence[float] | Tensor
    """Per channel, [3], or per pixel, float32 [S, S, 3], of values in 0..1."""
    std: Sequence[float]
    """Per channel, [3]."""
    whitening: Tensor | None = None
    """float32 [D, D], symmetric."""


class Preprocessing(nn.Module):
    """Keeps the arrays of a model's preprocessing."""

    mean: Tensor
    whitening: Tensor | None

    def __init__(self, mean: Tensor, whitening: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)
        self.train(False)

    def train(self, mode: bool = True) -> Preprocessing:
        """Stay in eval mode, by which the network's statistics that are averaged over ranks are told."""
        del mode
        return super().train(False)


def keep_arrays(model: nn.Module, normalization: Normalization) -> None:
    """Make the arrays of a normalization, if it has any, a part of a model."""
    if isinstance(normalization.mean, Tensor):
        device = next(model.parameters()).device
        arrays = Preprocessing(normalization.mean, normalization.whitening)
        model.add_module(PREFIX.rstrip("."), arrays.to(device))


def make_room(model: nn.Module, preprocessing: str, size: int) -> None:
    """Give a model the buffers of this kind of preprocessing, of zeros, into which its weights are then loaded."""
    if preprocessing in ("mean_image", "pca_whitening"):
        num = 3 * size * size
        whitening = torch.zeros(num, num) if preprocessing == "pca_whitening" else None
        keep_arrays(model, Normalization(torch.zeros(size, size, 3), (1.0,) * 3, whitening))


def normalization_of(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """How a model wants its input: by the arrays that it keeps, or else by the numbers of its model.json."""
    arrays = getattr(model, PREFIX.rstrip("."), None)
    if not isinstance(arrays, Preprocessing):
        return Normalization(mean, std)
    return Normalization(arrays.mean, std, arrays.whitening)


def without_arrays(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network alone."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}


def arrays_in(state: Mapping[str, Tensor], std: Sequence[float]) -> Normalization:
    """The normalization whose arrays are beside the weights of a network."""
    return Normalization(state[f"{PREFIX}mean"], std, state.get(f"{PREFIX}whitening"))
