"""AlexNet against its paper: the formula of its normalization in float64, its parameters, the sizes of its layers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.arrays import F64Array
from pipeline.config import NetworkSettings, Training
from pipeline.models import build, set_trainable
from pipeline.models.alexnet import AlexNet
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.models.layers import depths, lr_scales
from pipeline.models.local_response import LocalResponseNorm, normalize_response

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch

SMALL = {"width": 0.125, "grid": 2, "stride": 1}


# --------------------------------------------------------------------------------------------------- normalization


def by_the_formula(a: F64Array, k: float, n: int, alpha: float, beta: float) -> F64Array:
    """b of section 3.3, unit by unit: a_i over (k + alpha * the sum over j from max(0, i - n/2) to
    min(N - 1, i + n/2) of a_j squared) to the power of beta."""
    num = a.shape[1]
    b = np.empty_like(a)
    for i in range(num):
        total = sum(a[:, j] ** 2 for j in range(max(0, i - n // 2), min(num - 1, i + n // 2) + 1))
        b[:, i] = a[:, i] / (k + alpha * total) ** beta
    return b


@pytest.mark.parametrize("constants", [(2.0, 5, 1e-4, 0.75), (1.0, 3, 0.5, 0.6), (1.0, 1, 0.1, 1.0)])
@pytest.mark.parametrize("channels", [1, 3, 96])
def test_responses_are_normalized_by_the_formula_of_the_paper(
    constants: tuple[float, int, float, float], channels: int
) -> None:
    a = 20 * np.random.default_rng(0).standard_normal((2, channels, 3, 4))
    found = normalize_response(torch.from_numpy(a).float(), *constants)
    np.testing.assert_allclose(found.numpy(), by_the_formula(a, *constants), rtol=2e-6)


def test_the_constants_are_those_of_the_paper_and_torch_divides_alpha_by_n() -> None:
    a = 30 * torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    ours = LocalResponseNorm()(a)
    torch.testing.assert_close(ours, F.local_response_norm(a, size=5, alpha=5e-4, beta=0.75, k=2.0))
    assert not torch.allclose(ours, F.local_response_norm(a, size=5, alpha=1e-4, beta=0.75, k=2.0), rtol=1e-3)


def test_bf16_is_normalized_in_fp32_and_stays_bf16_and_channels_last() -> None:
    a = (30 * torch.randn(2, 16, 4, 4)).bfloat16().contiguous(memory_format=torch.channels_last)
    found = normalize_response(a)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, normalize_response(a.float()).bfloat16())


# ----------------------------------------------------------------------------------------------------- architecture


def on_meta(**arguments: object) -> AlexNet:
    with torch.device("meta"):
        model = timm.create_model("alexnet", **arguments)
    assert isinstance(model, AlexNet)
    return model


def shapes(model: nn.Module, size: int) -> list[tuple[int, ...]]:
    """What each convolution and each linear layer makes of an image."""
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, size, size, device="meta"))
    return seen


def test_parameters_and_layers_are_those_of_the_paper() -> None:
    model = on_meta(num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 62_378_344
    convs = [(96, 55, 55), (256, 27, 27), (384, 13, 13), (384, 13, 13), (256, 13, 13)]
    assert shapes(model, 227) == [*convs, (4096,), (4096,), (1000,)]
    assert model.forward_features(torch.zeros(1, 3, 227, 227, device="meta")).shape == (1, 256, 6, 6)
    assert all(m.groups == 1 for m in model.modules() if isinstance(m, nn.Conv2d))


def by_hand(model: AlexNet, x: Tensor) -> Tensor:
    """The order of section 3.5: normalization after the ReLU, pooling 3x3 at stride 2 after both."""
    for number, conv in enumerate(m for m in model.modules() if isinstance(m, nn.Conv2d)):
        x = F.relu(F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding))
        if number < 2:
            x = F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
        if number in (0, 1, 4):
            x = F.max_pool2d(x, 3, 2)  # without windows that stick out: at 227 pixels there are none
    x = x.flatten(1)
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        x = F.relu(x) if x.shape[1] == model.num_features else x
        x = F.linear(x, linear.weight, linear.bias)
    return x


def test_logits_are_those_of_its_layers_written_out() -> None:
    """At 227 pixels neither the averaging to 6 x 6 nor the windows at the border do anything."""
    model = build("alexnet", 7, model_args={"width": 0.125}).eval()
    assert isinstance(model, AlexNet)
    images = torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), by_hand(model, images))


@pytest.mark.parametrize(
    ("size", "stride", "grid"), [(227, 4, 6), (224, 4, 6), (128, 4, 3), (96, 4, 2), (64, 4, 1), (64, 2, 3), (32, 1, 2)]
)
def test_small_images_have_a_grid_that_repeats_no_feature(size: int, stride: int, grid: int) -> None:
    """The sizes that the docstring and docs/models.md name."""
    model = on_meta(num_classes=3, stride=stride, grid=grid)
    assert model.forward_features(torch.zeros(1, 3, size, size, device="meta")).shape[2:] == (grid, grid)
    assert model(torch.zeros(1, 3, size, size, device="meta")).shape == (1, 3)


@pytest.mark.parametrize("arguments", [{"lrn": False}, {"pool": 2}, {"act_layer": "tanh"}])
def test_what_the_paper_compares_is_an_argument_that_changes_the_logits_alone(arguments: dict[str, object]) -> None:
    base, other = (build("alexnet", 3, model_args={"width": 0.125, **a}).eval() for a in ({}, arguments))  # type: ignore[dict-item]
    other.load_state_dict(base.state_dict())
    images = 5 * torch.randn(2, 3, 227, 227, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.equal(base(images), other(images))


def test_dropout_zeroes_half_of_both_hidden_layers_in_training_alone() -> None:
    model = build("alexnet", 3, dropout=0.5, model_args={"width": 0.25, "grid": 1})
    assert isinstance(model, AlexNet)
    for layer in model.hidden:
        nn.init.zeros_(layer[0].weight)
        nn.init.ones_(layer[0].bias)
    features = torch.rand(64, 64, 1, 1)
    model.eval()
    assert torch.equal(model.forward_head(features, pre_logits=True), torch.ones(64, 1024))
    seen: list[Tensor] = []
    for layer in model.hidden:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    torch.manual_seed(0)
    model.train()(torch.zeros(64, 3, 64, 64))
    for out in seen:
        assert set(out.unique().tolist()) == {0.0, 2.0}
        assert float((out == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_its_layers_are_in_order_for_what_is_frozen_and_for_rates() -> None:
    model = build("alexnet", 3, model_args=dict(SMALL))  # type: ignore[arg-type]
    by_depth = depths(model, "frozen_layers", "0")
    weights = [by_depth[n] for n, p in model.named_parameters() if n.endswith("weight")]
    assert weights == [0, 1, 2, 3, 4, 5, 6, 7]
    scales = lr_scales(model, 0.5, 10.0)
    assert scales["convs.0.0.weight"] == 0.5**7
    assert scales["fc.weight"] == 10
    set_trainable(model.train(), 1)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
        f"convs.{i}.0.{name}" for i in range(2) for name in ("weight", "bias")
    ]


def test_a_saved_model_opens_in_timm_with_the_same_logits(tmp_path: Path) -> None:
    """With dropout, which the file does not need."""
    settings = NetworkSettings(model="alexnet", model_args=dict(SMALL), dropout=0.5)  # type: ignore[arg-type]
    model = build("alexnet", 3, dropout=0.5, model_args=settings.model_args).eval()
    info = ModelInfo.of(settings, Training(image_size=32), ("a", "b", "c"), {})
    save_model(tmp_path / "m.safetensors", model.state_dict(), info)
    other = timm.create_model("alexnet", num_classes=3, checkpoint_path=tmp_path / "m.safetensors", **info.model_args)
    ours, _ = load_model(tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), other.eval()(images))
        assert torch.equal(model(images), ours(images))


def test_the_page_on_models_names_arguments_that_fit_their_sizes() -> None:
    """Each row of its table: the grid is what the convolutions give at that size, and the parameters are counted."""
    rows = re.findall(r"\| ([\d or]+) \| `\{(.*)\}` \| ([\d,]+) \|", (ROOT / "docs" / "models.md").read_text())
    assert len(rows) == 5
    for sizes, arguments, parameters in rows:
        given = {key: int(value) for key, value in re.findall(r"(\w+): (\d+)", arguments)}
        model = on_meta(num_classes=10, **given)
        assert sum(p.numel() for p in model.parameters()) == int(parameters.replace(",", ""))
        for size in map(int, sizes.split(" or ")):
            features = model.forward_features(torch.zeros(1, 3, size, size, device="meta"))
            assert features.shape[2:] == (model.grid, model.grid)
