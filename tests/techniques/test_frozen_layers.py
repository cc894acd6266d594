"""Frozen layers against a training of the other layers on the features of the frozen ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from pipeline.models import build, set_trainable


@pytest.mark.parametrize(("num_frozen", "stochastic_depth"), [(1, 0.0), (2, 0.6)])
def test_a_step_is_that_of_the_later_layers_on_features_of_the_frozen_ones(
    num_frozen: int, stochastic_depth: float
) -> None:
    """The stem and the first blocks of wide_resnet10_1 are a fixed function in eval mode, which drops no path."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8)
    model = build("wide_resnet10_1", 10, stochastic_depth=stochastic_depth)
    reference = copy.deepcopy(model)

    model.train()
    set_trainable(model, num_frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(0)  # so that the later blocks draw the same
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()

    first, later = reference.blocks[:num_frozen], reference.blocks[num_frozen:]
    head = [*later, reference.norm, reference.fc]
    with torch.no_grad():
        x = reference.stem(images)
        for block in first:
            x = block.eval()(x)
    torch.manual_seed(0)
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
