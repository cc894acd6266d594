"""Compound scaling against timm's networks, the authors' rounding, and the figures of the papers."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.command import ROOT

from pipeline.config import NetworkSettings, Scalar, Start, Training
from pipeline.config.growth import ALPHA, BETA, GAMMA, scaled_side
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.compound_scaling import PUBLISHED
from pipeline.models.cost import cost_at
from pipeline.models.format import ModelInfo, load_model, save_model
from pipeline.models.sizes import main, scaled
from pipeline.models.weights import load_start

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch

PAGE = ROOT / "docs" / "models.md"
LINE = [f"B{number}" for number in range(8)]


@functools.cache
def shapes(name: str, arguments: tuple[tuple[str, float], ...] = ()) -> dict[str, torch.Size]:
    """Weights and statistics of a network with 1,000 classes, by name."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in timm.create_model(name, **dict(arguments)).state_dict().items()}


def ours(name: str) -> dict[str, torch.Size]:
    return shapes("efficientnet", (("width", PUBLISHED[name].width), ("depth", PUBLISHED[name].depth)))


def parameters(of: dict[str, torch.Size]) -> int:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for key, shape in of.items() if not key.endswith(statistics))


# ------------------------------------------------------------------------------------------- the networks of the papers


@pytest.mark.parametrize("name", [*LINE, "L2"])
def test_published_networks_are_those_of_timm_weight_by_weight(name: str) -> None:
    theirs = f"efficientnet_{name.lower()}"
    assert ours(name) == shapes(theirs)
    native = timm.get_pretrained_cfg(f"tf_{theirs}{'.ns_jft_in1k_475' if name == 'L2' else ''}")
    assert PUBLISHED[name].image_size == native.input_size[-1]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *zip(LINE, (5.3, 7.8, 9.2, 12, 19, 30, 43, 66), strict=True),  # Tan 2019, table 2
        *{"L0": 140, "L1": 273, "L2": 480}.items(),  # Xie 2020, table 7
    ],
)
def test_parameters_are_those_that_the_papers_print(name: str, millions: float) -> None:
    assert parameters(ours(name)) / 1e6 == pytest.approx(millions, rel=0.02)


def test_b6_wide_has_the_factors_of_its_paper_and_not_its_count() -> None:
    """Pham 2021 prints 390 million; the width of 5.0 and depth of 2.6 of its appendix and of its code give 317."""
    assert PUBLISHED["B6-Wide"][:2] == (5.0, PUBLISHED["B6"].depth)
    assert parameters(ours("B6-Wide")) == 316_649_180


def flops(side: int, **arguments: float) -> int:
    return cost_at("efficientnet", 1000, (3, side, side), tuple(arguments.items())).flops


def test_operations_are_those_that_the_paper_prints() -> None:
    """Tan 2019, table 2, which counts a multiplication and an addition as one."""
    assert flops(224) / 2e9 == pytest.approx(0.39, rel=0.02)
    assert flops(260, width=1.1, depth=1.2) / 2e9 == pytest.approx(1.0, rel=0.02)


def test_logits_are_those_of_timm_with_the_same_weights() -> None:
    model = build("efficientnet", 5, model_args={"width": 1.1, "depth": 1.2}).eval()
    theirs = timm.create_model("efficientnet_b2", num_classes=5).eval()
    theirs.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), theirs(images))


def test_weights_of_timm_start_it_with_other_classes(tmp_path: Path) -> None:
    theirs = timm.create_model("efficientnet_b0", num_classes=7).state_dict()
    save_file(theirs, tmp_path / "b0.safetensors")
    settings = NetworkSettings(model="efficientnet", start=Start(model=str(tmp_path / "b0.safetensors")))
    model = build("efficientnet", 3)
    load_start(model, settings)
    found = model.state_dict()
    assert [key for key in found if not torch.equal(found[key], theirs[key])] == [
        "classifier.weight",
        "classifier.bias",
    ]


# ------------------------------------------------------------------------------------------------------- any other size


def round_filters(filters: float, width: float) -> int:
    """The rounding of the authors' code, written down from it."""
    wanted = filters * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found


@pytest.mark.parametrize("phi", [-6.0, -2.5, -1.0, 0.5, 1.0, 2.0, 3.7])
def test_a_coefficient_scales_by_the_equation_and_rounds_as_the_authors_do(phi: float) -> None:
    found = shapes("efficientnet", (("phi", phi), ("width", 0.9), ("depth", 1.1)))
    width, depth = 0.9 * 1.1**phi, 1.1 * 1.2**phi
    assert found["conv_stem.weight"][0] == round_filters(32, width)
    assert found["conv_head.weight"][0] == round_filters(1280, width)
    for stage, (repeats, channels) in enumerate([(1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)]):
        blocks = {key.split(".")[2] for key in found if key.startswith(f"blocks.{stage}.")}
        assert len(blocks) == math.ceil(depth * repeats)
        last = "conv_pw" if stage == 0 else "conv_pwl"
        assert found[f"blocks.{stage}.0.{last}.weight"][0] == round_filters(channels, width)


def test_operations_about_double_per_step() -> None:
    """alpha * beta^2 * gamma^2 is 1.92, of which the paper says about 2; rounding up adds the rest."""
    assert pytest.approx(1.92, abs=0.005) == ALPHA * BETA**2 * GAMMA**2
    assert (flops(scaled_side(224, 2), phi=2.0) / flops(224)) ** 0.5 == pytest.approx(2, rel=0.1)


def test_sides_are_the_multiple_of_4_that_comes_nearest() -> None:
    assert [scaled_side(224, phi) for phi in (0, 0.5, 1, 2, 7)] == [224, 240, 256, 296, 596]
    assert [scaled_side(32, phi) for phi in (-3, -1, 0, 1, 2)] == [20, 28, 32, 36, 44]
    assert all(size.image_size % 4 == 0 for name, size in PUBLISHED.items() if name in LINE)


@pytest.mark.parametrize(("reduction", "side"), [(32, 2), (16, 4), (8, 8), (4, 16)])
def test_small_images_keep_their_features_by_fewer_strides(reduction: int, side: int) -> None:
    """With 4 the strides of stem, stage 2 and stage 3 are 1, as in the code of Meta Pseudo Labels for CIFAR-10."""
    with torch.device("meta"):
        model = build("efficientnet", 3, model_args={"phi": -4.0, "reduction": reduction})
        assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:] == (side, side)  # type: ignore[operator]
    whole = shapes("efficientnet", (("phi", -4.0),))
    part = shapes("efficientnet", (("phi", -4.0), ("reduction", reduction)))
    assert part == whole, "weights of one fit the other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": 5}, r"cannot be built with \{'reduction': 5\}: reduction is 5; set it to 32, 16, 8 or 4"),
        ({"width": 0.0}, "width 0.0 and depth 1.0 must be above 0"),
        ({"depth": -1.0}, "width 1.0 and depth -1.0 must be above 0"),
        ({"height": 2.0}, r"cannot be built with \{'height': 2.0\}"),
    ],
)
def test_what_has_no_size_is_explained(arguments: dict[str, Scalar], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("efficientnet", 3, model_args=arguments)


def test_a_saved_model_opens_in_timm_with_the_same_logits(tmp_path: Path) -> None:
    args: dict[str, Scalar] = {"phi": -6.0, "reduction": 4, "bn_momentum": 0.05, "act_layer": "relu"}
    settings = NetworkSettings(model="efficientnet", model_args=args)
    model = build("efficientnet", 3, dropout=0.2, stochastic_depth=0.2, model_args=args).eval()
    save_model(
        tmp_path / "m.safetensors",
        model.state_dict(),
        ModelInfo.of(settings, Training(image_size=16), ("a", "b", "c"), {}),
    )
    loaded, info = load_model(tmp_path / "m.safetensors")
    other = timm.create_model(
        "efficientnet", num_classes=3, checkpoint_path=tmp_path / "m.safetensors", **info.model_args
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(images), other.eval()(images))
        assert torch.equal(model(images), loaded(images))


# ----------------------------------------------------------------------------------------------------------- the tables


def test_the_page_has_the_table_of_published_networks() -> None:
    """Its operations, which take seconds to count, are held above, of the first three."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    found = {row[0]: row for row in rows if row and row[0] in PUBLISHED}
    assert found.keys() == PUBLISHED.keys()
    for name, size in PUBLISHED.items():
        row = [f"{size.width:.3g}", f"{size.depth:.3g}", str(size.image_size), f"{parameters(ours(name)):,}"]
        assert found[name][1:5] == row


def test_a_table_of_own_sizes_has_what_would_be_built() -> None:
    *_, row = scaled([-4.0], image_size=64, num_classes=10, reduction=8).splitlines()
    with torch.device("meta"):
        model = build("efficientnet", 10, model_args={"phi": -4.0, "reduction": 8})
    assert row.startswith("| phi -4 | 0.683 | 0.482 | 36 |")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in row


def test_the_command_prints_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["sizes", "--phi", "-5", "--image-size", "32", "--classes", "3"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == scaled([-5.0], 32, 3)
