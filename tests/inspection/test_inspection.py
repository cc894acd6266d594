"""Statistics of layers against numpy in float64, and the figure of the lecture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import Config, Training, changed, dump_yaml, parse
from pipeline.errors import UserError
from pipeline.inspection import Snapshot, inspect_variants, parse_variant
from pipeline.inspection.activity import layer_statistics
from pipeline.models import build

SMALL = {"img_size": 8, "width": 30, "depth": 4}
NOTHING = lambda variant, step: None  # noqa: E731


def mlp_config(digits: Config, **values: object) -> Config:
    plain = {"model": "mlp10", "model_args": SMALL, "warmup_steps": 0, "optimizer": {"lr": 0.01}}
    return changed(digits, teacher=changed(digits.teacher, **{**plain, **values}))


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_statistics_are_those_of_a_pass_in_float64(activation: str) -> None:
    torch.manual_seed(0)
    model = build("mlp10", 5, model_args={**SMALL, "activation": activation})
    for layer in model.layers:  # type: ignore[union-attr]
        nn.init.normal_(layer.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(5, (64,))
    found = layer_statistics(model, images, labels, activation)
    function = {"tanh": np.tanh, "relu": lambda x: x.clip(0), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[activation]
    x = images.flatten(1).double().numpy()
    for layer, one in zip(model.layers, found, strict=True):  # type: ignore[arg-type]
        x = function(x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())
        flat = {"tanh": abs(x) > 0.99, "relu": np.zeros_like(x), "sigmoid": abs(x - 0.5) > 0.49}[activation].mean()
        expected = (x.mean(), x.std(), (x == 0).mean(), flat)
        assert (one.mean, one.std, one.zeros, one.saturated) == pytest.approx(expected, rel=1e-4, abs=2e-3)
        np.testing.assert_allclose(one.values, x.ravel(), atol=1e-4)
    head = model.fc.weight.detach().double().numpy()  # type: ignore[union-attr]
    logits = x @ head.T + model.fc.bias.detach().double().numpy()  # type: ignore[union-attr]
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (soft - np.eye(5)[labels.numpy()]) @ head
    assert found[-1].gradient == pytest.approx(np.sqrt((gradient**2).mean()), rel=1e-4)
    assert (found[0].gradient < found[-1].gradient) == (activation == "sigmoid") or activation != "sigmoid"


def test_the_lectures_figure_small_gaussians_collapse_and_xavier_keeps_its_spread() -> None:
    """CS231n: tanh, ten layers of 500 units, unit Gaussian input."""
    spreads = {}
    for name, std in (("small", 0.01), ("large", 1.0), ("xavier", 500**-0.5)):
        torch.manual_seed(0)
        model = build("mlp10", 10, model_args={"img_size": 13, "activation": "tanh"})
        for layer in model.layers:  # type: ignore[union-attr]
            nn.init.normal_(layer.weight, std=std)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[union-attr, arg-type]
        found = layer_statistics(model, torch.randn(100, 3, 13, 13), torch.zeros(100).long(), "tanh")
        spreads[name] = [layer.std for layer in found]
        if name == "large":
            assert found[-1].saturated > 0.7
    assert spreads["small"][-1] < 1e-5
    assert spreads["large"][-1] > 0.95
    assert 0.15 < spreads["xavier"][-1] < spreads["xavier"][0] < 0.7


def test_variants_are_trained_as_their_configs_say(digits: Config) -> None:
    tanh = mlp_config(digits, activation="tanh")
    found = list(inspect_variants({"a": tanh, "b": mlp_config(digits)}, [2, 0], 32, NOTHING))
    assert [(one.variant, one.step) for one in found] == [("a", 0), ("a", 2), ("b", 0), ("b", 2)]
    assert all(len(one.layers) == SMALL["depth"] for one in found)
    assert stds(found[0]) != stds(found[1])
    assert found[2].layers[0].zeros > 0.3
    assert found[0].layers[0].zeros == 0
    again = list(inspect_variants({"a": tanh}, [0, 2], 32, NOTHING))
    assert [stds(one) for one in again] == [stds(one) for one in found[:2]]


def stds(snapshot: Snapshot) -> list[float]:
    return [layer.std for layer in snapshot.layers]


def test_a_network_with_blocks_and_batchnorm_can_be_inspected(digits: Config) -> None:
    (one,) = inspect_variants({"wide": digits}, [0], 16, NOTHING)
    assert [layer.name for layer in one.layers][:2] == ["blocks.0.act1", "blocks.0.act2"]


def test_what_cannot_be_inspected_is_refused(digits: Config) -> None:
    with pytest.raises(UserError, match=r"--steps 41 is beyond teacher.steps \(40\)"):
        list(inspect_variants({"a": digits}, [41], 8, NOTHING))
    with pytest.raises(UserError, match=r"has no module of an activation"):
        layer_statistics(nn.Linear(2, 2), torch.zeros(2, 2), torch.zeros(2).long(), None)
    with pytest.raises(UserError, match=r"mlp10 .*add img_size: 8 to model_args"):
        list(inspect_variants({"a": mlp_config(digits, model_args={})}, [0], 8, NOTHING))


@pytest.mark.parametrize("kind", ["mean_std", "mean_image", "pca_whitening"])
def test_preprocessed_images_pass_the_network(digits: Config, kind: str) -> None:
    unset = {"mean": Training().mean, "std": Training().std}
    config = mlp_config(digits, preprocessing=kind, **unset)
    at_first, after = inspect_variants({"a": config}, [0, 1], 16, NOTHING)
    assert stds(at_first) != stds(after)


def test_a_teacher_that_the_method_does_not_train_is_refused(digits: Config) -> None:
    """Its section would be the default, and the plot that of another network than the run's."""
    for method in ("uda", "meta"):
        raw = {**digits.model_dump(mode="json"), "method": method}
        raw["student"] |= {"targets": "soft", "loss_normalization": "labeled"}
        with pytest.raises(UserError, match=f"method {method} trains no teacher by itself"):
            list(inspect_variants({"a": parse(Config, raw, "config")}, [0], 8, NOTHING))


def test_variants_are_parted_by_commas_before_a_key() -> None:
    assert parse_variant("teacher.b=1,teacher.c.d={x: 1, y: 2},seed=f") == [
        "teacher.b=1",
        "teacher.c.d={x: 1, y: 2}",
        "seed=f",
    ]
    with pytest.raises(UserError, match=r"--variant tanh: 'tanh' is not KEY=VALUE"):
        parse_variant("tanh")
    with pytest.raises(UserError, match=r"'student\.activation=tanh' changes nothing that is inspected"):
        parse_variant("seed=1,student.activation=tanh")


def test_the_verb_writes_a_plot_and_its_figures(digits: Config, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(dump_yaml(mlp_config(digits)))
    out = tmp_path / "out" / "layers.png"
    variants = [part for name in ("tanh", "relu") for part in ("--variant", f"teacher.activation={name}")]
    arguments = ["inspect", str(tmp_path / "net.yaml"), *variants, "--images", "32", "--out", str(out)]
    threads = torch.get_num_threads()
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    torch.set_num_threads(threads)
    assert done.exit_code == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(out.with_suffix(".json").read_text())
    assert [row["variant"] for row in rows] == ["teacher.activation=tanh", "teacher.activation=relu"]
    with pytest.raises(UserError, match=r"must end in .png"):
        CliRunner().invoke(app, [*arguments[:-1], "x.pdf"], catch_exceptions=False)
