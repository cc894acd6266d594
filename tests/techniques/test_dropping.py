"""Dropout at several places and DropConnect against their definitions, with the same draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import build, set_trainable
from pipeline.models.dropping import DropConnect, add_dropping, drop_connections

RATE = 0.3


def with_dropping(architecture: str, **values: object) -> nn.Module:
    settings = NetworkSettings(model=architecture, **values)  # type: ignore[arg-type]
    return add_dropping(build(architecture, 10), settings)


def seen(model: nn.Module, *names: str) -> dict[str, list[Tensor]]:
    """What modules get and give in one pass: name -> [input, output]. It listens after what drops."""
    found: dict[str, list[Tensor]] = {}
    for name in names:

        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
            found[name] = [inputs[0].detach().clone(), output.detach().clone()]

        model.get_submodule(name).register_forward_hook(keep)
    model(torch.randn(16, 3, 32, 32))
    return found


def check_dropped(dropped: Tensor, whole: Tensor, rate: float) -> None:
    """Values are zero with this probability, or divided by that of staying."""
    is_zero = (dropped == 0) & (whole != 0)
    torch.testing.assert_close(dropped, torch.where(is_zero, 0.0, whole / (1 - rate)))
    num = int((whole != 0).sum())
    assert abs(int(is_zero.sum()) / num - rate) < 5 * (rate * (1 - rate) / num) ** 0.5


@pytest.mark.parametrize(
    ("architecture", "before", "last"),
    [
        ("wide_resnet10_1", "blocks.1.act2", "blocks.1.conv2"),
        ("resnet18", "layer2.0.act1", "layer2.0.conv2"),
        ("resnet10t", "layer2.0.act1", "layer2.0.conv2"),
        ("regnetx_002", "s1.b1.se", "s1.b1.conv3.conv"),
        ("test_efficientnet", "blocks.2.0.bn1.act", "blocks.2.0.conv_pwl"),
    ],
)
def test_block_dropout_acts_before_the_last_layer_of_each_branch_alone(
    architecture: str, before: str, last: str
) -> None:
    """Against what the layer before it gave."""
    torch.manual_seed(0)
    model = with_dropping(architecture, block_dropout=RATE)
    found = seen(model.train(), before, last)
    check_dropped(found[last][0], found[before][1], RATE)
    eval_found = seen(model.eval(), before, last)
    assert torch.equal(eval_found[last][0], eval_found[before][1])


def test_dropout_acts_on_what_the_named_modules_give_alone() -> None:
    torch.manual_seed(0)
    model = with_dropping("wide_resnet10_1", dropout_at={"blocks.*.act2": RATE, "blocks.1": 0.5, "blocks.2": 0.0})
    found = seen(model.train(), "blocks.0.act2", "blocks.0.conv2", "blocks.0.norm2", "blocks.1")
    active = torch.nn.functional.leaky_relu(found["blocks.0.norm2"][1], 0.2)
    check_dropped(found["blocks.0.conv2"][0], active, RATE)
    share = (found["blocks.1"][1] == 0).float().mean()
    assert abs(float(share) - 0.5) < 0.01
    images = torch.randn(2, 3, 8, 8)
    plain = build("wide_resnet10_1", 10).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), plain(images))


def test_the_last_pattern_that_names_a_module_counts() -> None:
    model = with_dropping("wide_resnet10_1", dropout_at={"blocks.?": 0.1, "blocks.1": 0.5})
    (hook,) = model.get_submodule("blocks.1")._forward_hooks.values()
    assert hook.args == (0.5,)


def test_resnet9_drops_before_the_one_convolution_of_each_branch() -> None:
    model = with_dropping("resnet9", block_dropout=RATE)
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert hooked == [f"stages.{number}.conv2" for number in range(3)]


def test_frozen_layers_drop_nothing() -> None:
    model = with_dropping("wide_resnet10_1", block_dropout=RATE, dropout_at={"blocks.0.act2": RATE}).train()
    set_trainable(model, 1)
    found = seen(model, "blocks.0.act2", "blocks.0.conv2")
    assert torch.equal(found["blocks.0.act2"][1], found["blocks.0.conv2"][0])


def test_drop_connect_is_a_masked_product_per_image() -> None:
    """Wan 2013, 3.1, in float64 with the masks that the same generator gives."""
    layer = nn.Linear(6, 4)
    dropping = DropConnect.of(layer, RATE)
    features = torch.randn(5, 6)
    torch.manual_seed(3)
    found = dropping.train()(features)
    torch.manual_seed(3)
    weight_mask = nn.functional.dropout(torch.ones(5, 4, 6), RATE)
    bias_mask = nn.functional.dropout(torch.ones(5, 4), RATE)
    assert (weight_mask[0] != weight_mask[1]).any()
    weight, bias = layer.weight.double(), layer.bias.double()
    expected = ((weight_mask * weight) * features[:, None].double()).sum(2) + bias_mask * bias
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    mean = torch.stack([dropping(features) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, layer(features), rtol=0.1, atol=0.1)
    assert torch.equal(dropping.eval()(features), layer(features))


@pytest.mark.parametrize("architecture", ["wide_resnet10_1", "resnet9", "resnet18", "test_vit"])
def test_the_classifier_drops_weights_under_the_same_names(architecture: str) -> None:
    plain = build(architecture, 10).eval()
    model = with_dropping(architecture, drop_connect=RATE)
    assert isinstance(model.get_classifier(), DropConnect)  # type: ignore[operator]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(isinstance(p, nn.Parameter) and not p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "values", "message"),
    [
        ("densenet121", {"block_dropout": 0.1}, r"`block_dropout`: DenseNet has no residual branches .*set it to 0"),
        ("resnet9", {"dropout_at": {"stage.1": 0.1}}, r"`dropout_at`: ResNet9 has no module 'stage.1', did you mean"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(architecture: str, values: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        with_dropping(architecture, **values)


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    with pytest.raises(UserError, match=r"`drop_connect`: Conv2d has no classifier of one linear layer; set it to 0"):
        drop_connections(nn.Conv2d(3, 2, 1), RATE)
