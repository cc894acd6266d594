"""Many small networks side by side: one of each seed, trained in the same matrix products."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.randomness import key_of, uniforms


class Networks(nn.Module):
    """S perceptrons of two hidden layers on points in the plane. Each has its seed's weights, whoever is beside it.

    Args:
        seeds: One a network.
        name: Tells teachers from students.
        hidden: Units a layer.
        activation: Between the layers.
        init: Weights are uniform in (-init, init); biases are 0.
    """

    def __init__(self, seeds: list[int], name: str, hidden: int, activation: str, init: float) -> None:
        super().__init__()
        self.activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}[activation]
        sizes = (2, hidden, hidden, 2)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            draws = [uniforms(key_of(seed, "init", name, layer), np.arange(inputs), outputs) for seed in seeds]
            self.weights.append(nn.Parameter(torch.from_numpy(init * (2 * np.stack(draws) - 1)).float()))
            self.biases.append(nn.Parameter(torch.zeros(len(seeds), 1, outputs)))

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, S, 2], or [N, 1, 2] for all alike, to logits [S, N, 2]."""
        x = points.transpose(0, 1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (self.activation(x) if number else x) @ weight + bias
        return x
