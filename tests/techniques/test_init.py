"""Initial weights against torch's own, against the variances that the papers derive, and AlexNet's layer by layer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.learners import learner_of
from support.processes import train_job
from torch import nn

from pipeline.config import Config, Init, NetworkSettings, Training, changed, parse, semantic
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.initialization import draw_weights, fans, initialize
from pipeline.runs.dry_run import check_training

TIMMS = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto")
OURS = ("wide_resnet10_1", "resnet9")


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name", [*TIMMS, *OURS])
def test_every_convolution_and_linear_layer_is_drawn_and_nothing_else(name: str) -> None:
    model = build(name, 10)
    before = copy.deepcopy(model.state_dict())
    draw_weights(model, Init(name="constant", value=0.25))
    layers = [layer for layer, module in model.named_modules() if module in set(layers_of(model))]
    drawn = {f"{layer}.{own}" for layer in layers for own in ("weight", "bias")}
    for key, value in model.state_dict().items():
        if key not in drawn:
            assert torch.equal(value, before[key]), key
        else:
            assert bool((value == (0.25 if key.endswith("weight") else 0.0)).all()), key


CASES: tuple[tuple[dict[str, Any], Any], ...] = (
    ({"name": "xavier"}, nn.init.xavier_uniform_),
    ({"name": "kaiming"}, lambda w: nn.init.kaiming_normal_(w, mode="fan_in", nonlinearity="relu")),
    ({"name": "kaiming", "fan": "out"}, lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")),
    ({"name": "gaussian", "std": 0.3}, lambda w: nn.init.normal_(w, 0.0, 0.3)),
    ({"name": "zero"}, nn.init.zeros_),
)


@pytest.mark.parametrize(("init", "torchs"), CASES)
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 10, 3), nn.Linear(7, 5)])
def test_the_draws_are_those_of_torch(init: dict[str, Any], torchs: Any, layer: nn.Module) -> None:
    model, expected = nn.Sequential(copy.deepcopy(layer)), copy.deepcopy(layer)
    torch.manual_seed(0)
    draw_weights(model, Init(**init))
    torch.manual_seed(0)
    torchs(expected.weight)
    torch.testing.assert_close(model[0].weight, expected.weight)  # type: ignore[arg-type]
    assert not model[0].bias.any()  # type: ignore[operator, union-attr]


@torch.no_grad()
def test_through_many_layers_the_variance_stays_as_glorot_and_he_derive_it() -> None:
    """Xavier keeps it through linear layers, and kaiming the mean square through ReLUs; a small Gaussian loses it."""
    torch.manual_seed(0)
    linear = nn.Sequential(*(nn.Linear(400, 400) for _ in range(8)))
    relu = nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(400, 400), nn.ReLU())))
    x = torch.randn(500, 400)
    draw_weights(linear, Init(name="xavier"))
    assert float(linear(x).var()) == pytest.approx(1.0, abs=0.25)
    draw_weights(relu, Init(name="kaiming"))
    assert float(relu(x).square().mean()) == pytest.approx(1.0, abs=0.4)
    draw_weights(relu, Init(name="gaussian", std=0.01))
    assert float(relu(x).square().mean()) < 1e-6


@pytest.mark.parametrize("name", ["zero", "constant"])
def test_with_weights_that_are_alike_features_stay_alike(name: Any) -> None:
    """The experiment on why random weights are needed: all features of a layer have one gradient (CS231n)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, labels = torch.randn(8, 6), torch.arange(8) % 3
    for init, alike in ((Init(name=name), True), (Init(name="xavier"), False)):
        draw_weights(model, init)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        features = model[0](x)
        assert torch.allclose(features, features[:, :1].expand_as(features), atol=1e-6) == alike


def test_in_groups_a_layer_has_the_fans_of_its_group() -> None:
    """A depthwise convolution of 3 x 3 sums over 9 inputs, and each input is part of 9 outputs."""
    assert fans(nn.Conv2d(12, 12, 3, groups=12)) == (9, 9)
    assert fans(nn.Conv2d(8, 24, 3, groups=4)) == (2 * 9, 6 * 9)
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Conv2d(4096, 4096, 3, groups=4096))
    draw_weights(deep, Init(name="kaiming", fan="out"))
    assert float(deep[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 9), rel=0.02)  # type: ignore[union-attr, operator, arg-type]


def test_a_small_positive_bias_wakes_units_whose_weights_are_zero() -> None:
    """With a bias of 0 no ReLU answers and no hidden layer learns; with 0.01 all do (CS231n)."""
    x, labels = torch.randn(8, 6), torch.arange(8) % 3
    for bias, alive in ((0.0, False), (0.01, True)):
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        draw_weights(model, Init(name="zero", bias=bias))
        assert model[0].bias.tolist() == pytest.approx([bias] * 5)  # type: ignore[union-attr, operator]
        assert bool((model[:2](x) > 0).all()) == alive
        nn.functional.cross_entropy(model(x), labels).backward()
        assert bool(model[2].weight.grad.any()) == alive  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["alexnet", "vit_tiny_patch16_224"])
def test_the_bias_is_that_of_all_layers_and_the_weights_are_those_without_it(name: str) -> None:
    model = build(name, 10, model_args={"width": 0.125} if name == "alexnet" else {})
    other = copy.deepcopy(model)
    for network, bias in ((model, 0.01), (other, 0.0)):
        torch.manual_seed(0)
        draw_weights(network, Init(name="kaiming", bias=bias))
    for layer, without in zip(layers_of(model), layers_of(other), strict=True):
        assert torch.equal(layer.weight, without.weight)
        assert layer.bias is None or bool((layer.bias == torch.tensor(0.01)).all())


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet10_1"])
def test_a_bias_is_refused_where_no_layer_before_the_classifier_has_one(name: str) -> None:
    with pytest.raises(UserError, match=r"`init\.bias`: \w+ has no biases before its classifier; drop it"):
        draw_weights(build(name, 10), Init(name="kaiming", bias=0.01))


# -------------------------------------------------------------------------------------------------------------- alexnet


def test_alexnet_begins_as_in_the_paper() -> None:
    """Section 5: N(0, 0.01); biases 1 in convolutions 2, 4 and 5 and in the hidden linear layers, 0 in the others."""
    torch.manual_seed(0)
    model = build("alexnet", 10, model_args={"width": 0.125})
    draw_weights(model, Init(name="alexnet"))
    named = [(name.partition(".")[0], m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [place for place, _ in named] == ["convs"] * 5 + ["hidden"] * 2 + ["fc"]
    biases = [layer.bias.unique().tolist() for _, layer in named if layer.bias is not None]
    assert biases == [[b] for b in (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)]
    for _, layer in named:
        weights = layer.weight.detach()
        assert float(weights.std()) == pytest.approx(0.01, rel=5 / weights.numel() ** 0.5)
        assert abs(float(weights.mean())) < 0.05 / weights.numel() ** 0.5
    drawn = torch.cat([layer.weight.detach().flatten() for _, layer in named]).double()
    assert float(((drawn / 0.01) ** 4).mean()) == pytest.approx(3, rel=0.02), "the fourth moment of a Gaussian"


def without_biases() -> nn.Module:
    """The layers of AlexNet in their numbers, the first without a bias."""
    convolutions = [nn.Conv2d(3, 8, 3, bias=False), *(nn.Conv2d(8, 8, 3) for _ in range(4))]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (without_biases(), r"Sequential has 5 and 3, 1 of them without"),
        (build("wide_resnet10_1", 10), r"WideResNet has 9 and 1, 9 of them without"),
    ],
)
def test_alexnets_is_refused_by_other_networks(model: nn.Module, found: str) -> None:
    with pytest.raises(UserError, match=rf"`init`: alexnet is for five convolutions .*{found}; set init to gaussian"):
        draw_weights(model, Init(name="alexnet"))


def test_a_network_without_layers_to_draw_is_an_error() -> None:
    with pytest.raises(UserError, match=r"`init`: Sequential has no convolution or linear layer; drop it"):
        draw_weights(nn.Sequential(nn.BatchNorm2d(3)), Init(name="xavier"))


# ---------------------------------------------------------------------------------------------------------- the config


def test_a_word_is_a_section_and_the_default_is_off() -> None:
    assert Training(init="xavier").init == Init(name="xavier")  # type: ignore[arg-type]
    assert semantic(Training(init="default")) == semantic(Training())  # type: ignore[arg-type]
    assert semantic(Training(init={"name": "default"})) == semantic(Training())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"init": "lecun"}, r"`init\.name`: .*'xavier', 'kaiming'.*lecun"),
        ({"init": {"name": "xavier", "std": 0.1}}, r"std is 0\.1, which xavier does not read; drop it, or"),
        ({"init": {"name": "alexnet", "bias": 0.1}}, r"bias is 0\.1, which alexnet does not read; drop it, or set"),
        ({"init": {"name": "default", "bias": 0.1}}, r"bias is 0\.1, which default does not read; drop it, or set"),
        ({"init": "xavier", "start": {"model": "x"}}, r"init is xavier, but start gives the network its weights; drop"),
        ({"zero_gamma": False, "start": {"model": "x"}}, r"zero_gamma is false, but start gives the network"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Training, values, "x")


@pytest.mark.parametrize("key", ["init", "zero_gamma"])
def test_students_that_start_from_their_teacher_have_no_random_weights(key: str) -> None:
    raw = {"rounds": {"start": "init"}, "student": {key: {"init": "xavier", "zero_gamma": True}[key]}}
    with pytest.raises(UserError, match=rf"student\.{key} is set, but with rounds\.start: init students start from"):
        parse(Config, raw, "x")


def test_what_an_architecture_refuses_shows_before_a_run_begins() -> None:
    training = Training(model="resnet9", image_size=8, init="alexnet")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"teacher: `init`: alexnet is for five convolutions"):
        check_training("teacher", training, 10, 1)
    check_training("teacher", Training(model="resnet9", image_size=8, zero_gamma=True, init="xavier"), 10, 1)  # type: ignore[arg-type]


def test_a_training_begins_with_weights_of_its_seed_and_whitens_no_stem(digits: Config, tmp_path: Any) -> None:
    """resnet9 whitens its stem by the images, which are weights that `init` does not ask for."""

    def weights(seed: int, **values: Any) -> dict[str, torch.Tensor]:
        raw = {**digits.teacher.model_dump(), "model": "resnet9", "model_args": {"width": 4}, **values}
        job = train_job(digits, tmp_path, training=Training.model_validate(raw))
        return copy.deepcopy(learner_of(changed(job, seed=seed)).model.raw_model.state_dict())

    own, first, again, other = weights(0), *(weights(seed, init="gaussian") for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert float(first["stem.weight"].abs().max()) < 0.05
    assert float(own["stem.weight"].abs().max()) > 0.05


def test_init_leaves_the_zero_that_zero_gamma_asks_for() -> None:
    model = build("wide_resnet10_1", 10)
    settings = {"init": "gaussian", "zero_gamma": True}
    initialize(model, NetworkSettings(**settings))  # type: ignore[arg-type]
    assert not model.blocks[0].conv2.weight.any()  # type: ignore[index, union-attr]
    assert float(model.blocks[0].conv1.weight.detach().std()) == pytest.approx(0.01, rel=0.1)  # type: ignore[index, union-attr, operator, arg-type]
    initialize(model, NetworkSettings(**{**settings, "zero_gamma": False}))  # type: ignore[arg-type]
    assert float(model.blocks[0].conv2.weight.detach().std()) == pytest.approx(0.01, rel=0.1)  # type: ignore[index, union-attr, operator, arg-type]
