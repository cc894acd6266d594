"""Activations against torch's functions and timm's own builds; what escapes the replacement is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_net  # noqa: F401 - registers selftrain_tiny
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import NetworkSettings, Training
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.activations import ACTIVATIONS
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.models.forward import check_forward
from pipeline.models.weights import load_start

import timm  # isort: skip - after pipeline.models

FUNCTIONAL: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "selu": lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (x.exp() - 1)),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


@every_activation
def test_an_activation_is_that_of_its_paper(name: str) -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    module = ACTIVATIONS[name](False).double()
    torch.testing.assert_close(module(x), FUNCTIONAL[name](x), rtol=1e-7, atol=1e-7)


@every_activation
@pytest.mark.parametrize("architecture", ["resnet10t", "test_efficientnet", "test_vit", "test_convnext"])
def test_a_model_of_timm_computes_what_timm_builds_by_act_layer(architecture: str, name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(architecture, num_classes=5, act_layer=name).eval()
    ours = build(architecture, 5, model_args={"activation": name}).eval()
    ours.load_state_dict(theirs.state_dict(), strict=name != "prelu")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


OURS: dict[str, dict[str, Any]] = {
    "wide_resnet10_1": {},
    "resnet9": {"width": 8},
    "alexnet": {"width": 0.0625, "grid": 2, "stride": 1},
    "polynet_small": {"width": 0.05, "stage_a": "2-way", "stage_b": "poly-3", "stage_c": "mpoly-2"},
    "efficientnet": {"width": 0.25, "depth": 0.25, "reduction": 4},
    "mlp10": {"width": 20},
    "resnet18_d": {"channels": (8, 8, 16, 16)},
}
"""Each architecture of ours, small."""


@every_activation
@pytest.mark.parametrize("architecture", OURS)
def test_a_model_of_ours_computes_what_the_function_in_place_of_its_own_gives(
    architecture: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same network, in which torch's own ReLU, leaky ReLU and SiLU are made to compute the other function."""
    torch.manual_seed(0)
    args = OURS[architecture]
    ours = build(architecture, 5, model_args={**args, "activation": name}).eval()
    plain = build(architecture, 5, model_args=args).eval()
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k in plain.state_dict()})
    images = torch.randn(2, 3, 32, 32)
    own = plain(images)
    for function in ("relu", "silu", "leaky_relu"):
        monkeypatch.setattr(F, function, lambda x, *rest, **options: FUNCTIONAL[name](x))
    expected = plain(images)
    monkeypatch.undo()
    torch.testing.assert_close(ours(images), expected)
    silu, slope_of_its_own = ("resnet9", "efficientnet"), "wide_resnet10_1"
    its_own = None if architecture == slope_of_its_own else "silu" if architecture in silu else "relu"
    assert torch.allclose(own, expected) == (name == its_own)


@pytest.mark.parametrize("architecture", OURS)
def test_no_activation_of_ours_escapes_its_replacement(architecture: str) -> None:
    """None of them is called as a function, which the dry run would refuse."""
    check_forward(architecture, 5, {"image_size": 32}, model_args={**OURS[architecture], "activation": "tanh"})


def test_gates_stay_and_a_network_without_an_activation_module_is_refused() -> None:
    gates = [m for m in build("test_efficientnet", 2, model_args={"activation": "tanh"}).modules()]
    assert any(isinstance(m, nn.Sigmoid) for m in gates)
    assert not any(isinstance(m, nn.SiLU | nn.ReLU) for m in gates)
    with pytest.raises(UserError, match=r"`activation`: TinyNet has no module of an activation .* set it to null"):
        build("selftrain_tiny", 10, model_args={"activation": "relu"})
    with pytest.raises(UserError, match=r"`activation`: 'rule' is none; choose one of sigmoid"):
        build("resnet10t", 10, model_args={"activation": "rule"})


def test_a_network_that_calls_its_activation_as_a_function_is_refused_before_it_trains() -> None:
    """mobilevitv2's attention has F.relu in its forward pass, beside SiLU modules."""
    check_forward("mobilevitv2_050", 2, {"image_size": 64})
    with pytest.raises(UserError, match=r"`activation`: ByobNet calls relu as a function \d+ times .*set it to null"):
        check_forward("mobilevitv2_050", 2, {"image_size": 64}, model_args={"activation": "elu"})


# ------------------------------------------------------------------------------------------------------- starts, export


def saved(path: Path, activation: str | None, architecture: str = "wide_resnet10_1") -> Path:
    settings = Training(model=architecture, activation=activation, image_size=8)  # type: ignore[arg-type]
    info = ModelInfo.of(settings, settings, ("a", "b"), {})
    save_model(path / "model.safetensors", build(architecture, 2, model_args=info.model_args).state_dict(), info)
    return path


def test_model_json_holds_the_activation_and_plain_timm_refuses_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, "elu")
    model, info = load_model(folder)
    assert any(isinstance(m, nn.ELU) for m in model.modules())
    assert info.model_args == {"activation": "elu"}
    printed = CliRunner().invoke(app, ["export", str(folder), "--out", str(tmp_path / "out.safetensors")]).output
    assert "load_model(Path(" in printed
    assert "create_model" not in printed
    again, _ = load_model(tmp_path / "out.safetensors")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), model(images))
    with pytest.raises(TypeError, match="activation"):
        timm.create_model("resnet10t", num_classes=2, **info.model_args)


@pytest.mark.parametrize(("theirs", "ours"), [(None, "prelu"), ("relu", "elu"), ("prelu", None)])
def test_a_start_of_another_activation_is_allowed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, theirs: str | None, ours: str | None
) -> None:
    folder = saved(tmp_path, theirs)
    settings = NetworkSettings(model="wide_resnet10_1", activation=ours, start={"model": str(folder)})  # type: ignore[arg-type]
    model = build(settings.model, 2, model_args=settings.built_with)
    with caplog.at_level(logging.WARNING, "selftrain.models"):
        load_start(model, settings, ("a", "b"))
    own = "the architecture's own"
    assert f"was trained with activation {theirs or own}, and here it is {ours or own}" in caplog.text
    state, start = model.state_dict(), load_model(folder)[0].state_dict()
    assert all(torch.equal(state[name], start[name]) for name in state.keys() & start.keys())
    slopes = {name for name in state if name not in start}
    assert all(state[name].item() == 0.25 for name in slopes)
    assert bool(slopes) == (ours == "prelu")


def test_a_start_of_the_same_activation_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = NetworkSettings(
        model="wide_resnet10_1",
        activation="elu",
        start={"model": str(saved(tmp_path, "elu"))},  # type: ignore[arg-type]
    )
    load_start(build(settings.model, 2, model_args=settings.built_with), settings, ("a", "b"))
    assert not caplog.records


def test_an_activation_that_model_args_says_too_must_be_the_same() -> None:
    """model.json's model_args can be a config's."""
    assert NetworkSettings(model_args={"activation": "elu"}).built_with == {"activation": "elu"}
    NetworkSettings(activation="elu", model_args={"activation": "elu"})
    with pytest.raises(ValueError, match="activation is relu, but model_args says activation: elu; drop it"):
        NetworkSettings(activation="relu", model_args={"activation": "elu"})
