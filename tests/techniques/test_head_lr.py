"""The learning rate of the classifier, against gradients that are taken by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import Optimizer
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.layers import lr_scales
from pipeline.train.optimizer import make_optimizer, set_lr


@pytest.mark.parametrize(
    ("name", "head"),
    [("wide_resnet10_1", "fc"), ("resnet9", "fc"), ("test_efficientnet", "classifier"), ("test_vit", "head")],
)
def test_only_the_classifier_learns_at_another_rate(name: str, head: str) -> None:
    torch.manual_seed(0)
    model = build(name, 10).eval()
    size = 160 if name == "test_vit" else 32
    before, images = copy.deepcopy(model), torch.randn(2, 3, size, size)
    optimizer = make_optimizer(model, Optimizer(momentum=0.0, weight_decay=0.0), lr_scales(model, 1.0, 10.0))
    set_lr(optimizer, 0.01)
    F.cross_entropy(model(images), torch.arange(2)).backward()
    optimizer.step()
    F.cross_entropy(before(images), torch.arange(2)).backward()
    for (key, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        rate = 0.1 if key.rpartition(".")[0] == head else 0.01
        assert old.grad is not None
        torch.testing.assert_close(new, old - rate * old.grad, msg=key)


def test_a_network_that_does_not_name_its_classifier_is_an_error() -> None:
    with pytest.raises(UserError, match=r"`head_lr`: Linear does not say which layer is its classifier .*set it to 1"):
        lr_scales(nn.Linear(2, 2), 1.0, 0.5)
