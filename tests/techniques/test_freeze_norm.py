"""Frozen BatchNorm against timm's own conversion of a network's BatchNorms into frozen ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.models import build, set_trainable

from timm.layers import freeze_batch_norm_2d  # isort: skip - after pipeline.models, which lets it be imported


def used(name: str) -> nn.Module:
    """A network whose BatchNorms have other statistics and parameters than new ones."""
    torch.manual_seed(0)
    model = build(name, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def take_step(model: nn.Module, images: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(len(images))).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["wide_resnet10_1", "resnet9", "test_efficientnet", "test_resnet"])
def test_a_step_is_that_of_a_network_whose_batchnorms_timm_froze(name: str) -> None:
    """`test_efficientnet` has timm's BatchNormAct2d."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = used(name)
    reference = freeze_batch_norm_2d(copy.deepcopy(ours))
    take_step(reference.train(), images)
    set_trainable(ours.train(), 0, freeze_norm=True)
    take_step(ours, images)
    found = ours.state_dict()
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(found[key], value, msg=key)


def test_a_network_without_batchnorm_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"`freeze_norm`: VisionTransformer has no BatchNorm to freeze; set it to false"
    ):
        set_trainable(build("test_vit", 10), 0, freeze_norm=True)
