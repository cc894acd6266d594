"""A classifier that trains first, against its training on features that were stored before."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.stages.ranks import Ranks
from pipeline.train.network import Network, prepare

THAW = 3
LABELS = torch.arange(8)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def thawing(optimizer: str = "sgd", thaw_steps: int = THAW) -> Network:
    """A network with BatchNorm and with paths to drop, which would show if the encoder were in train mode."""
    torch.manual_seed(0)
    model = build("wide_resnet10_1", 10, stochastic_depth=0.5)
    rates = {"name": optimizer, "lr": 0.1, "weight_decay": 0.01}
    settings = NetworkSettings(thaw_steps=thaw_steps, ema_decay=0.0, optimizer=rates)  # type: ignore[arg-type]
    return prepare(model, settings, Accelerator(cpu=True), Ranks())


def take(network: Network, images: Tensor, step: int, lr: float = 0.1) -> Tensor:
    """One step as a loop and a learner take it; returns the logits."""
    network.train_mode(step)
    torch.manual_seed(step)
    logits: Tensor = network.model(images)
    F.cross_entropy(logits, LABELS).backward()
    network.update(lr)
    return logits


def test_before_the_thaw_a_step_is_that_of_the_classifier_on_stored_features(images: Tensor) -> None:
    network = thawing()
    encoder = copy.deepcopy(network.raw_model).eval()
    with torch.no_grad():
        features = encoder.forward_features(images).mean((2, 3))  # type: ignore[operator]
    head = nn.Linear(64, 10)
    head.load_state_dict(encoder.fc.state_dict())  # type: ignore[union-attr]
    decayed = [{"params": [head.bias], "weight_decay": 0.0}, {"params": [head.weight], "weight_decay": 0.01}]
    optimizer = torch.optim.SGD(decayed, lr=0.1, momentum=0.9, nesterov=True)
    for step in range(THAW):
        torch.testing.assert_close(take(network, images, step), head(features))
        optimizer.zero_grad()
        F.cross_entropy(head(features), LABELS).backward()
        optimizer.step()
    for name, value in network.raw_model.state_dict().items():
        if name.startswith("fc."):
            torch.testing.assert_close(value, head.state_dict()[name[3:]])
        else:
            assert torch.equal(value, encoder.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "rmsproptf", "adamw", "lamb", "alexnet"])
def test_from_the_thaw_on_all_trains_as_if_it_began_there(images: Tensor, optimizer: str) -> None:
    """With every optimizer: the steps of the classifier alone count for none of them."""
    network = thawing(optimizer)
    for step in range(THAW):
        take(network, images, step, lr=0.01)
    reference = thawing(optimizer, thaw_steps=0)
    reference.raw_model.load_state_dict(network.raw_model.state_dict())
    for step in (THAW, THAW + 1):
        take(network, images, step, lr=0.01)
        take(reference, images, step, lr=0.01)
    for name, value in reference.raw_model.state_dict().items():
        torch.testing.assert_close(network.raw_model.state_dict()[name], value, msg=name)


def test_a_network_that_does_not_name_its_classifier_is_an_error() -> None:
    settings = NetworkSettings(thaw_steps=1)
    with pytest.raises(UserError, match=r"`thaw_steps`: Linear does not say which layer is its classifier"):
        prepare(nn.Linear(2, 2), settings, Accelerator(cpu=True), Ranks())
