"""Small networks under plain gradient descent, on which the step of Meta Pseudo Labels is tried."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.stages.ranks import Ranks
from pipeline.train.ema import Ema
from pipeline.train.network import Network

NUM_CLASSES, NUM_UNLABELED, NUM_LABELED, SIZE = 3, 2, 4, 5


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(SIZE, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES))


def network(model: nn.Module, clip_norm: float = 0.0, label_smoothing: float = 0.0) -> Network:
    """A model under plain gradient descent: no momentum, no decay."""
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    settings = NetworkSettings(label_smoothing=label_smoothing, clip_norm=clip_norm)
    return Network(accelerator, Ranks(), settings, model, model, optimizer, Ema(model, 0.9))


def flat(tensors: Iterator[Tensor] | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def weights(network: Network) -> Tensor:
    return flat(list(network.raw_model.parameters())).clone()
