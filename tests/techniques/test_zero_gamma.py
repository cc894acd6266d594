"""With zero gamma each residual branch gives exactly nothing at first, and without it something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.initialization import initialize

# isort: split
# after pipeline.models, which lets it be imported
from timm.models.resnet import BasicBlock, Bottleneck

RESNETS = ("resnet18", "resnet26", "resnet18d", "resnet26d", "resnet26t")
SMALL = {"channels": (8, 8, 8, 16), "layers": (1, 2, 1, 1)}


def small(name: str) -> nn.Module:
    """A network with few channels and blocks, if it is one of timm's ResNets, so that the test is quick."""
    torch.manual_seed(0)
    return build(name, 10, model_args=SMALL if name in RESNETS else {})  # type: ignore[arg-type]


def branches(model: nn.Module) -> list[nn.Module]:
    """The blocks with a residual branch."""
    return [module for module in model.modules() if hasattr(module, "zero_init_last")]


def shortcut_of(block: Any, x: torch.Tensor) -> torch.Tensor:
    """What a block of timm's ResNets gives if its branch gives nothing: its shortcut, and the activation after it."""
    act: torch.Tensor = (block.act2 if isinstance(block, BasicBlock) else block.act3)(
        x if block.downsample is None else block.downsample(x)
    )
    return act


@pytest.mark.parametrize("name", RESNETS)
def test_a_block_of_timms_resnets_is_its_shortcut(name: str) -> None:
    """Both kinds of blocks, with the shortcuts of ResNet-B and ResNet-D."""
    model = small(name)
    initialize(model, NetworkSettings(zero_gamma=True))
    found: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    for block in branches(model):
        assert isinstance(block, BasicBlock | Bottleneck)
        block.register_forward_hook(lambda block, given, out: found.append((block, given[0].clone(), out.clone())))
    model.eval()(torch.randn(2, 3, 32, 32))
    assert len(found) == len(branches(model))
    for block, x, out in found:
        assert torch.equal(out, shortcut_of(block, x))


@pytest.mark.parametrize(("value", "nothing"), [(True, True), (False, False), (None, False)])
@pytest.mark.parametrize("name", ["wide_resnet10_1", "resnet9"])
def test_the_branches_of_ours_give_nothing_only_with_it(name: str, value: bool | None, nothing: bool) -> None:
    """Also in train mode. All that a branch gives passes its `drop_path`."""
    model = small(name)
    initialize(model, NetworkSettings(zero_gamma=value))
    given: list[torch.Tensor] = []
    for block in branches(model):
        block.drop_path.register_forward_hook(lambda _, x, out: given.append(out.clone()))  # type: ignore[union-attr]
    model(torch.randn(4, 3, 16, 16))
    assert len(given) == 3
    assert all(bool(out.any()) != nothing for out in given)


@pytest.mark.parametrize("name", ["resnet18", "resnet26d", "regnetx_002", "resnet9"])
def test_without_it_every_gamma_is_one_and_with_it_that_of_the_last_is_zero(name: str) -> None:
    norms = {}
    for value in (True, False):
        model = small(name)
        initialize(model, NetworkSettings(zero_gamma=value))
        norms[value] = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        number = len(branches(model))
    assert all(bool((gamma == 1).all()) for gamma in norms[False])
    assert sum(not gamma.any() for gamma in norms[True]) == number


def test_a_branch_that_ends_with_a_convolution_begins_with_a_zero_one_and_learns() -> None:
    """wide_resnet and resnetv2 have pre-activation: there is no normalization after the last convolution."""
    for name in ("wide_resnet10_1", "resnetv2_18"):
        model = small(name)
        initialize(model, NetworkSettings(zero_gamma=True))
        weights = [block.conv2.weight for block in branches(model)]
        assert not any(weight.any() for weight in weights)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        assert all(weight.grad.any() for weight in weights)
        initialize(model, NetworkSettings(zero_gamma=False))
        assert all(weight.any() for weight in weights)


def test_a_module_of_polynet_gives_what_it_gets() -> None:
    """Whatever its polynomial is: all of its terms end with a gamma of their own."""
    stages = {"stage_a": "2-way", "stage_b": "poly-3", "stage_c": "mpoly-2"}
    model = build("polynet_small", 10, model_args={"width": 0.05, **stages})
    initialize(model, NetworkSettings(zero_gamma=True))
    found: list[bool] = []
    for block in branches(model):
        block.register_forward_hook(lambda _, given, out: found.append(torch.equal(out, given[0])))
    model(torch.randn(2, 3, 32, 32))
    assert found == [True] * 3


def test_without_the_key_an_architecture_begins_as_it_did() -> None:
    for name in ("resnet18", "wide_resnet10_1"):
        first, second = small(name), small(name)
        initialize(second, NetworkSettings())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["vgg11", "tf_efficientnet_lite0"])
def test_what_does_not_say_how_its_branches_end_is_an_error(name: str, value: bool) -> None:
    with torch.device("meta"):
        model = build(name, 10)
    with pytest.raises(
        UserError, match=rf"`zero_gamma`: \w+ has no residual branches, .* cannot be {str(value).lower()}"
    ):
        initialize(model, NetworkSettings(zero_gamma=value))
