"""With zero gamma each residual branch gives exactly nothing at first, and without it something."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.branches import branch_ends
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


# -------------------------------------------------------------------------------------------- each module of timm

SHALLOW = {"layers": (1, 1, 1, 1)}
NARROW = {"width_factor": 0.25}
FAMILIES: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("resnet26d", SHALLOW, True),  # timm.models.resnet
    ("res2net50_14w_8s", SHALLOW, True),  # res2net
    ("resnest14d", {}, True),  # resnest
    ("skresnet18", SHALLOW, False),  # sknet
    ("resnetv2_18", SHALLOW, False),  # resnetv2
    ("regnetx_002", {}, True),  # regnet
    ("cspresnet50", {}, True),  # cspnet
    ("resnext26ts", {"width_factor": 0.5}, True),  # byobnet
    ("gcresnet33ts", NARROW, True),
    ("botnet26t_256", {**NARROW, "img_size": 64}, True),  # byoanet
    ("resnet18_d", {"channels": (8, 8, 8, 16)}, True),  # ours, of timm's blocks
)
"""One network of each module of timm whose blocks say what they end with: its name and arguments, and whether it begins
with zero gamma by itself."""
LEFT_OUT = {
    "tresnet_m": "has no residual branches",
    "legacy_seresnet18": "has no residual branches",
    "legacy_seresnet50": "has no residual branches",
    "nf_resnet26": "has no residual branches",
    "inception_resnet_v2": "has no residual branches",
    "vit_small_resnet26d_224": r"has \d+ blocks with residual branches that do not say .*, such as blocks\.0, so it",
    "mobilevit_xxs": r"has \d+ blocks with residual branches that do not say",
    "tf_efficientnet_lite0": "has no residual branches",
    "vgg11": "has no residual branches",
}
"""Networks that are refused: what the card names, one of each module of timm, and others."""


def matters(block: nn.Module, x: torch.Tensor) -> bool:
    """Whether what a block gives changes with the weights of its branch, those that are 0 left as they are."""
    before = block(x.clone())
    for name, parameter in block.named_parameters():
        if not name.startswith(("shortcut", "downsample", "norm1")) and parameter.any():
            parameter.data.uniform_(0.5, 1.5)
    return not torch.equal(block(x.clone()), before)


@pytest.mark.parametrize(("name", "arguments", "own"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
@torch.inference_mode()
def test_the_branches_of_each_family_of_timm_matter_at_first_only_without_it(
    name: str, arguments: dict[str, Any], own: bool
) -> None:
    torch.manual_seed(0)
    model = build(name, 10, model_args=arguments).eval()
    begun = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    blocks = [m for m in model.modules() if hasattr(m, "drop_path") and getattr(m, "shortcut", m) is not None]
    assert len(blocks) >= 4
    given: dict[nn.Module, torch.Tensor] = {}
    hooks = [block.register_forward_pre_hook(lambda block, x: given.update({block: x[0].clone()})) for block in blocks]
    model(torch.randn(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    for value, at_first in ((True, False), (False, True), (None, not own)):
        model.load_state_dict(begun)
        initialize(model, NetworkSettings(zero_gamma=value))
        assert [matters(block, given[block]) for block in blocks] == [at_first] * len(blocks), value


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_does_not_say_how_its_branches_end_is_an_error(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 10)
    for value in (True, False):
        with pytest.raises(
            UserError, match=rf"`zero_gamma`: \w+ {LEFT_OUT[name]}.* cannot be {str(value).lower()}.*; drop it"
        ):
            initialize(model, NetworkSettings(zero_gamma=value))


def test_asking_blocks_what_they_end_with_moves_no_generator() -> None:
    """ByobNet's blocks draw their attention's weights when they are asked."""
    with torch.device("meta"):
        model = build("botnet26t_256", 10, model_args={"img_size": 64})
    before = torch.get_rng_state()
    assert branch_ends(model)
    assert torch.equal(torch.get_rng_state(), before)
