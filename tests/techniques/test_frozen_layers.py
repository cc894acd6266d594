"""Frozen layers against a training of the other layers on the features of the frozen ones."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

from pipeline.models import build, set_trainable


def test_a_step_is_that_of_the_later_layers_on_features_of_the_frozen_ones() -> None:
    """One block of wide_resnet10_1 is frozen, so its stem and its first block are a fixed function in eval mode."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8)
    model = build("wide_resnet10_1", 10)
    reference = copy.deepcopy(model)

    model.train()
    set_trainable(model, 1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()

    first, *later = reference.blocks
    head = [*later, reference.norm, reference.fc]
    with torch.no_grad():
        x = first.eval()(reference.stem(images))
    for block in later:
        x = block.train()(x)
    x = F.leaky_relu(reference.norm.train()(x), 0.2).mean((2, 3))
    weights = [p for module in head for p in module.parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(reference.fc(x), labels), weights)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= 0.1 * gradient

    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
