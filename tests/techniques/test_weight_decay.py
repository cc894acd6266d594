"""Weight decay against a penalty in the loss, and AdamW's against the shrinking that is its definition."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pipeline.config import Optimizer
from pipeline.models import build
from pipeline.train.optimizer import make_optimizer

DECAY, LR = 0.3, 0.1


def test_sgd_decays_as_if_half_the_squared_norm_of_the_weights_were_in_the_loss() -> None:
    model = build("wide_resnet10_1", 10).double()
    reference = copy.deepcopy(model)
    ours = make_optimizer(model, Optimizer(lr=LR, momentum=0.9, weight_decay=DECAY))
    theirs = torch.optim.SGD(reference.parameters(), lr=LR, momentum=0.9, nesterov=True)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(images).square().mean().backward()
        penalty = sum(p.square().sum() for p in reference.parameters() if p.ndim > 1)  # no biases, no normalization
        (reference(images).square().mean() + DECAY / 2 * penalty).backward()
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    for (name, value), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_vectors_decay_as_all_else_if_asked_for() -> None:
    """Against torch's SGD with its own weight decay, which knows no exceptions."""
    model = build("wide_resnet10_1", 10).double()
    reference = copy.deepcopy(model)
    ours = make_optimizer(model, Optimizer(lr=LR, momentum=0.9, weight_decay=DECAY, decay_vectors=True))
    theirs = torch.optim.SGD(reference.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=DECAY)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for network, optimizer in ((model, ours), (reference, theirs)):
            network(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for (name, value), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)


def test_adamw_shrinks_the_weights_apart_from_the_gradient() -> None:
    """Loshchilov and Hutter 2019: without a gradient, each step multiplies matrices by 1 - lr * decay."""
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model, Optimizer(name="adamw", lr=LR, weight_decay=DECAY))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, before.weight * (1 - LR * DECAY))
    torch.testing.assert_close(model.bias, before.bias)
