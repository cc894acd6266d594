"""Many small networks side by side, one per seed, which are trained in the same matrix products."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.randomness import key_of, uniforms


class Networks(nn.Module):
    """S perceptrons with two hidden layers, for points in the plane.

    The weights of each depend on its own seed only, not on the other networks.

    Args:
        seeds: The seeds, one per network.
        name: A name that gives teachers and students different weights.
        hidden: The number of units per hidden layer.
        activation: The activation between the layers: sigmoid, tanh or relu.
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
        """Points [N, S, 2], or [N, 1, 2] if all networks see the same, -> logits [S, N, 2]."""
        x = points.transpose(0, 1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (self.activation(x) if number else x) @ weight + bias
        return x
