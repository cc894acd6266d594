"""PolyNet against the definition of its modules, computed by numpy in float64, and against the paper's figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models import build, num_frozen, set_trainable
from pipeline.models.poly_inception import INCEPTIONS, KINDS, Inception, PolyInception
from pipeline.models.polynet import PolyNet, parse_stage
from pipeline.models.recompute import checkpoint_gradients

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch

Array = NDArray[np.float64]
BETA, CHANNELS, RATE = 0.3, 24, 0.25
TINY = {"stage_a": "2-way", "stage_b": "poly-3", "stage_c": "mpoly-2", "width": 0.05, "stem_stride": 2}


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def narrow(stage: int) -> tuple[tuple[tuple[int, int | tuple[int, int]], ...], ...]:
    """The branches of a stage's Inception block with an eighth of their channels."""
    return tuple(tuple((width // 8, kernel) for width, kernel in branch) for branch in INCEPTIONS[stage])


def module(kind: str, stage: int, **options: float) -> PolyInception:
    """A module in eval mode, with weights and statistics of which none is neutral."""
    generator = torch.Generator().manual_seed(stage)
    made = PolyInception(kind, CHANNELS, narrow(stage), norm, scale=BETA, **options)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if "num_batches" not in name:
                tensor.uniform_(0.5 if "var" in name else -1, 1.5 if "var" in name else 1, generator=generator)
    return made.eval()


@pytest.fixture
def features() -> Tensor:
    """Features as a ReLU leaves them, [2, C, 9, 9]."""
    return torch.randn(2, CHANNELS, 9, 9, generator=torch.Generator().manual_seed(7)).relu()


# ------------------------------------------------------------------------------------------- by numpy, from the weights


def convolved(x: Array, weights: Array) -> Array:
    """[B, C, H, W] by kernels [D, C, h, w] -> [B, D, H, W], with zeros around."""
    h, w = weights.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (h // 2, h // 2), (w // 2, w // 2)))
    rows, columns = x.shape[2:]
    parts = (
        np.einsum("bchw,dc->bdhw", padded[:, :, i : i + rows, j : j + columns], weights[:, :, i, j])
        for i in range(h)
        for j in range(w)
    )
    return np.asarray(sum(parts))


class Reference:
    """The blocks of a module as functions in float64."""

    def __init__(self, made: PolyInception) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in made.state_dict().items()}

    def conv_norm(self, x: Array, name: str, use: int = 0) -> Array:
        gamma, beta, mean, variance = (
            self.state[f"{name}.norms.{use}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (convolved(x, self.state[f"{name}.conv.weight"]) - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def block(self, x: Array, number: int, use: int = 0) -> Array:
        """Block `number` of the module, at its `use`-th use."""
        joined, prefix = [], f"inceptions.{number}"
        for branch in range(8):
            out = x
            for layer in range(8):
                if (name := f"{prefix}.branches.{branch}.{layer}") + ".conv.weight" in self.state:
                    out = np.maximum(self.conv_norm(out, name, use), 0)
            if f"{prefix}.branches.{branch}.0.conv.weight" in self.state:
                joined.append(out)
        return self.conv_norm(np.concatenate(joined, 1), f"{prefix}.project.{use}")


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def polynomial(kind: str, x: Array, made: PolyInception) -> list[Array]:
    """The terms beside the identity, as the paper writes them: nothing is shared between them."""
    of = Reference(made).block
    f, g, h = (lambda y, n=n: of(y, n) for n in range(3))
    first, second, third = (lambda y, use=use: of(y, 0, use) for use in range(3))  # F, at each of its uses
    return {
        "ir": lambda: [f(x)],
        "poly-2": lambda: [first(x), second(relu(first(x)))],
        "poly-3": lambda: [first(x), second(relu(first(x))), third(relu(second(relu(first(x)))))],
        "mpoly-2": lambda: [f(x), g(relu(f(x)))],
        "mpoly-3": lambda: [f(x), g(relu(f(x))), h(relu(g(relu(f(x)))))],
        "2-way": lambda: [f(x), g(x)],
        "3-way": lambda: [f(x), g(x), h(x)],
    }[kind]()


@pytest.mark.parametrize("stage", [0, 1, 2], ids=["A", "B", "C"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_the_polynomial_of_its_blocks(kind: str, stage: int, features: Tensor) -> None:
    made, x = module(kind, stage), features.double().numpy()
    expected = relu(x + BETA * sum(polynomial(kind, x, made)))
    with torch.no_grad():
        np.testing.assert_allclose(made(features).numpy(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_of_a_module_runs_twice(kind: str, features: Tensor) -> None:
    """The cascade computes F once for F, GF and HGF; the terms one by one would take six blocks for three paths."""
    made = module(kind, 0)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for part in made.modules():
        if isinstance(part, Inception):
            part.register_forward_hook(count)
    made(features)
    assert runs == KINDS[kind].num_paths


@pytest.mark.parametrize(("kind", "shares"), [("poly-3", True), ("mpoly-3", False), ("3-way", False)])
def test_poly_shares_the_convolutions_of_its_branches_and_the_others_share_nothing(kind: str, shares: bool) -> None:
    def number(kind: str, part: str) -> int:
        return sum(p.numel() for name, p in module(kind, 1).named_parameters() if part in name)

    one = {part: number("ir", part) for part in ("branches", "conv.weight", "norms", "project")}
    branches = number(kind, "branches")
    in_norms = sum(p.numel() for n, p in module("ir", 1).named_parameters() if "branches" in n and "norms" in n)
    assert branches == (one["branches"] + 2 * in_norms if shares else 3 * one["branches"])
    assert number(kind, "norms") == 3 * one["norms"]
    assert number(kind, "project") == 3 * one["project"]


# ------------------------------------------------------------------------------------------------------------- networks


def test_very_deep_polynet_has_the_modules_and_the_parameters_of_the_paper() -> None:
    """10-20-10 modules, and 95,366,600 parameters with 1,000 classes, as the authors publish it."""
    with torch.device("meta"):
        model = timm.create_model("polynet", num_classes=1000)
        features = model.forward_features(torch.zeros(1, 3, 331, 331))
    assert sum(p.numel() for p in model.parameters()) == 95_366_600
    assert [len(stage) for stage in model.stages] == [10, 20, 10]
    assert model.kinds == [["2-way"] * 10, ["poly-3", "2-way"] * 10, ["poly-3", "2-way"] * 5]
    assert features.shape == (1, 2048, 9, 9)
    assert {block.scale for stage in model.stages for block in stage} == {0.3}


@pytest.mark.parametrize(("stride", "size"), [(1, 32), (2, 32), (2, 64), (4, 128), (8, 331)])
def test_every_stem_divides_the_size_by_its_stride(stride: int, size: int) -> None:
    with torch.device("meta"):
        model = build("polynet_small", 10, model_args={"stem_stride": stride})
        side = model.stem(torch.zeros(1, 3, size, size)).shape[-1]  # type: ignore[operator]
    assert abs(side - size // stride) <= 2  # the stem of 8 has no padding
    assert model.stem(torch.zeros(1, 3, size, size, device="meta")).shape[1] == 96  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("2-way x 3", ["2-way"] * 3),
        ("poly-3 2-way x 2", ["poly-3", "2-way"] * 2),
        ("ir x 2,  3-way mpoly-3 poly-3 x 1, ir", ["ir", "ir", "3-way", "mpoly-3", "poly-3", "ir"]),
        ("ir", ["ir"]),
    ],
)
def test_a_stage_is_said_in_one_line(text: str, kinds: list[str]) -> None:
    assert parse_stage(text) == kinds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poly-4 x 2", r"'poly-4' in 'poly-4 x 2' is no kind of module, did you mean `poly-[23]`"),
        ("2-way * 3", r"'2-way \* 3' .* is no group of modules; write e\.g\."),
        ("ir,", "is no group of modules"),
        ("ir x 0", "has no module"),
    ],
)
def test_a_stage_that_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("polynet_small", 10, model_args={"stage_b": text})


def test_a_stem_of_another_stride_is_refused() -> None:
    with pytest.raises(UserError, match="stem_stride is 3; set it to 1, 2 or 4, or to 8"):
        build("polynet_small", 10, model_args={"stem_stride": 3})


def test_frozen_layers_count_the_modules_and_reductions_in_their_order() -> None:
    """The stem, the one module of stage A, the reduction, the one of stage B: frozen_layers 3 freezes these."""
    model = build("polynet_small", 10, model_args=TINY)
    set_trainable(model, 3)
    learning = {name.rsplit(".", 1)[0].partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert num_frozen(model) > 0
    assert learning == {"reductions", "stages", "fc"}
    begins = ("reductions.1.", "stages.2.", "fc.")
    assert all(name.startswith(begins) == p.requires_grad for name, p in model.named_parameters())


def test_checkpointed_gradients_are_the_same_bits() -> None:
    def gradients(*, again: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = build("polynet_small", 10, stochastic_depth=0.5, model_args=TINY).train()
        if again:
            checkpoint_gradients(model)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        return [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]

    whole, repeated = gradients(again=False), gradients(again=True)
    assert len(whole) == len(repeated) > 0
    assert all(torch.equal(a, b) for a, b in zip(whole, repeated, strict=True))


# ----------------------------------------------------------------------------------------------------- stochastic paths


def test_paths_are_dropped_with_a_probability_that_rises_linearly_over_the_modules() -> None:
    model = build("polynet_small", 10, stochastic_depth=RATE)
    assert isinstance(model, PolyNet)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]  # type: ignore[attr-defined]
    assert rates == pytest.approx(np.linspace(0, RATE, 8).tolist())


@pytest.mark.parametrize("kind", ["poly-2", "mpoly-3", "3-way"])
def test_each_image_keeps_the_identity_and_a_random_choice_of_the_terms(kind: str) -> None:
    """Every image is the identity and some of the float64 terms, each times 1 / (1 - rate); each occurs as often as it
    should."""
    num = 400
    made = module(kind, 2, drop_path=RATE)
    made.drop_path.train()  # BatchNorm stays as it is
    image = torch.randn(1, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(7)).relu()
    torch.manual_seed(0)
    with torch.no_grad():
        seen = made(image.expand(num, -1, -1, -1)).double().numpy()
    x = image.double().numpy()
    terms = polynomial(kind, x, made)
    choices = list(np.ndindex(*(2,) * len(terms)))
    sums = [x + BETA / (1 - RATE) * sum(k * t for k, t in zip(kept, terms, strict=True)) for kept in choices]
    distances = np.stack([np.abs(seen - relu(s)).max((1, 2, 3)) for s in sums])
    assert (distances.min(0) < 1e-3).all()
    kept = np.array(choices)[distances.argmin(0)].mean(0)
    assert np.abs(kept - (1 - RATE)).max() < 5 * (RATE * (1 - RATE) / num) ** 0.5


def test_evaluation_takes_every_path_once(features: Tensor) -> None:
    made, whole = module("3-way", 1, drop_path=RATE), module("3-way", 1)
    assert torch.equal(made(features), whole(features))
