"""Predictions without the BatchNorm that convolutions can take up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.folding import Network, both, images_of, plain_pair, small, trained
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import _get_current_function_mode

from pipeline.models import build
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.forward import predict_logits


@pytest.mark.parametrize(
    ("name", "size", "share"),
    [
        ("resnet9", 32, 0.5),  # the other half comes after a pooling
        ("resnet18", 64, 1.0),
        ("resnet50", 64, 1.0),
        ("tf_efficientnet_lite0", 64, 1.0),
        ("mobilenetv3_small_050", 64, 1.0),
        ("wide_resnet28_2", 32, 0.5),
        ("densenet121", 64, 0.5),  # half of its norms read several layers side by side
        ("alexnet", 64, 0.0),
        ("test_vit", 32, 0.0),
    ],
)
def test_a_folded_network_predicts_the_same(name: str, size: int, share: float) -> None:
    model = trained(build(name, 5))
    num = sum(isinstance(module, _BatchNorm) for module in model.modules())
    folding, plain, folded = both(model, images_of(size))
    assert share * num - 3 <= len(folding) <= num
    if share == 1:
        assert len(folding) == num > 0
    if not share:
        assert torch.equal(folded, plain)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_no_batch_norm_runs_where_all_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(build("resnet18", 5))
    folding = FoldedBatchNorm(model, images_of(32, 1))

    monkeypatch.delattr(torch, "batch_norm")
    with torch.inference_mode(), folding:
        predict_logits(model, images_of(32))
    with torch.inference_mode(), pytest.raises(AttributeError, match="batch_norm"):
        predict_logits(model, images_of(32))


def read_twice(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    return net.norm(features) + features


def read_as_a_part(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    return net.norm(features) + features[:, :1]


def conv_called_twice(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.conv(x.flip(2))


def norm_called_twice(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.norm(net.other(x))


def activation_between(net: Any, x: Tensor) -> Tensor:
    return net.norm(F.relu(net.conv(x)))


def in_place_between(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x).mul_(2))


def written_into_another(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    both = torch.zeros(len(x), 16, *features.shape[2:])
    both[:, :8] = features
    both[:, 8:] = net.norm(features) * 3000
    return both


def read_as_an_array(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    return net.norm(features) + float(features.detach().numpy().mean())


def computed_weight(net: Any, x: Tensor) -> Tensor:
    return net.norm(F.conv2d(x, net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True)))


def computed_bias(net: Any, x: Tensor) -> Tensor:
    return net.norm(F.conv2d(x, net.conv.weight, x.mean().expand(8)))


def computed_scale(net: Any, x: Tensor) -> Tensor:
    norm = net.norm
    return F.batch_norm(net.conv(x), norm.running_mean, norm.running_var, norm.weight * x.mean(), norm.bias)


def statistics_of_the_batch(net: Any, x: Tensor) -> Tensor:
    return F.batch_norm(net.conv(x), net.norm.running_mean.clone(), net.norm.running_var.clone(), training=True)


def looked_at(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    assert features.ndim == 4
    assert features.shape[1] == net.norm.num_features
    return net.norm(features)


def by_keywords(net: Any, x: Tensor) -> Tensor:
    conv, norm = net.conv, net.norm
    features = F.conv2d(input=x, weight=conv.weight, bias=conv.bias, padding=1)
    statistics = {"running_mean": norm.running_mean, "running_var": norm.running_var}
    return F.batch_norm(input=features, weight=norm.weight, bias=norm.bias, **statistics)


class BothLevels(Network):
    """A body that returns what the convolution gives, too, which the head reads."""

    def forward_features(self, images: Tensor) -> Any:
        features = self.conv(images)
        return [features, self.norm(features)]

    def forward_head(self, features: Any) -> Tensor:
        return torch.cat([level.mean((2, 3)) for level in features], 1)


@pytest.mark.parametrize(
    ("forward", "num_folded"),
    [
        (plain_pair, 1),
        (looked_at, 1),
        (by_keywords, 1),
        (read_twice, 0),
        (read_as_a_part, 0),
        (read_as_an_array, 0),
        (written_into_another, 0),
        (conv_called_twice, 0),
        (norm_called_twice, 0),
        (activation_between, 0),
        (in_place_between, 0),
        (computed_weight, 0),
        (computed_bias, 0),
        (computed_scale, 0),
        (statistics_of_the_batch, 0),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_only_a_norm_that_alone_reads_one_convolution_is_folded(
    forward: Callable[[Any, Tensor], Tensor], num_folded: int, bias: bool
) -> None:
    convs = {name: nn.Conv2d(3, 8, 3, padding=1, bias=bias) for name in ("conv", "other")}
    model = trained(Network(forward, **convs, norm=nn.BatchNorm2d(8)))
    folding, plain, folded = both(model, images_of(8))
    assert len(folding) == num_folded
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_what_a_scripted_function_reads_is_not_folded() -> None:
    shifted = torch.jit.script(shift)

    def forward(net: Any, x: Tensor) -> Tensor:
        features = net.conv(x)
        return torch.relu(net.norm(features)) + shifted(features)

    folding, plain, folded = both(small(forward), images_of(8))
    assert len(folding) == 0
    assert torch.equal(folded, plain)


def test_what_the_head_reads_is_not_folded() -> None:
    model = trained(BothLevels(plain_pair, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8)))
    folding, plain, folded = both(model, images_of(8))
    assert len(folding) == 0
    assert torch.equal(folded, plain)


def shift(features: Tensor) -> Tensor:
    return features + 1


@pytest.mark.parametrize("how", [{"stride": 2}, {"dilation": 2}, {"groups": 3, "padding": 1}, {"padding": "same"}])
def test_convolutions_of_every_kind_are_folded(how: dict[str, Any]) -> None:
    model = trained(Network(plain_pair, conv=nn.Conv2d(3, 6, 3, **how), norm=nn.BatchNorm2d(6)))
    folding, plain, folded = both(model, images_of(9))
    assert len(folding) == 1
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


def test_a_norm_without_weights_is_folded() -> None:
    norm = nn.BatchNorm2d(6, affine=False)
    assert norm.running_mean is not None
    norm.running_mean += 0.5
    folding, plain, folded = both(Network(plain_pair, conv=nn.Conv2d(3, 6, 3), norm=norm).eval(), images_of(9))
    assert len(folding) == 1
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


def test_a_model_in_training_is_not_folded() -> None:
    model = Network(plain_pair, conv=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6)).train()
    assert len(FoldedBatchNorm(model, images_of(9))) == 0


def test_without_a_pair_nothing_is_entered() -> None:
    folding = FoldedBatchNorm(build("test_vit", 5).eval(), images_of(32, 1))
    with folding:
        assert _get_current_function_mode() is None
