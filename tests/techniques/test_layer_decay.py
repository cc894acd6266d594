"""Layer-wise learning rates against timm's own groups, and against steps at a rate for each layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.config import Optimizer
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.layers import lr_scales
from pipeline.train.optimizer import make_optimizer, set_lr

from timm.optim import param_groups_layer_decay  # isort: skip - after pipeline.models, which lets it be imported

DECAY = 0.7


def scaled(model: nn.Module, name: str) -> torch.optim.Optimizer:
    optimizer = Optimizer(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    return make_optimizer(model, optimizer, lr_scales(model, DECAY, 1.0))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224", "wide_resnet10_1"])
def test_rates_and_weight_decay_are_those_of_timms_groups(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 10)
    no_decay: Any = getattr(model, "no_weight_decay", set)()
    reference = param_groups_layer_decay(model, 0.1, no_decay, layer_decay=DECAY)
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in reference for p in g["params"]}
    optimizer = scaled(model, "sgd")
    set_lr(optimizer, 0.5)
    found = {id(p): (g["lr"] / 0.5, g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values)
    assert len({scale for scale, _ in expected.values()}) > 4


@pytest.mark.parametrize("name", ["sgd", "rmsproptf", "adamw", "lamb", "alexnet"])
def test_a_step_of_every_optimizer_is_scaled(name: str) -> None:
    """Two steps are those of as many optimizers as there are factors, each with its own learning rate."""
    torch.manual_seed(0)
    model = build("wide_resnet10_1", 10).eval()
    reference = copy.deepcopy(model)
    scales = lr_scales(model, DECAY, 1.0)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    ours = [scaled(model, name)]
    parts = []
    for scale in sorted(set(scales.values())):
        part = copy.copy(reference)
        part.named_parameters = lambda scale=scale: [  # type: ignore[method-assign, misc]
            (n, p) for n, p in reference.named_parameters() if scales[n] == scale
        ]
        parts.append(make_optimizer(part, Optimizer(name=name, weight_decay=0.1)))  # type: ignore[arg-type]
        parts[-1].scale = scale  # type: ignore[attr-defined]
    for net, optimizers in ((model, ours), (reference, parts)):
        for _ in range(2):
            net.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            for optimizer in optimizers:
                set_lr(optimizer, 0.01 * getattr(optimizer, "scale", 1.0))
                optimizer.step()
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, msg=key)


def test_a_network_that_does_not_describe_its_layers_is_an_error() -> None:
    with pytest.raises(UserError, match=r"`layer_decay`: Linear does not describe its layers; set it to 1"):
        lr_scales(nn.Linear(2, 2), 0.5, 1.0)
