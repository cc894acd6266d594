"""Whatever predicts has its BatchNorm folded, and says so when a network does not do what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.folding import Network, both, images_of, plain_pair, small, trained
from support.processes import train_job
from torch import Tensor, nn

from pipeline.config import Config, changed
from pipeline.evaluate.predictor import Predictor
from pipeline.features.encoder import Encoder
from pipeline.models import build
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.format import ModelInfo, save_model
from pipeline.models.forward import predict_logits
from pipeline.shards.dataset import open_split
from pipeline.stages.ranks import Ranks
from pipeline.train.distillation import Teacher
from pipeline.train.setup import Setup

INFO = ModelInfo(
    architecture="resnet18",
    model_args={},
    classes=("cat", "dog"),
    input_size=(3, 32, 32),
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    crop_pct=1.0,
    metrics={},
    lineage={},
)
HOW: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32", "flip": False}
PIXELS = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_a_predictor_has_the_weights_of_its_time() -> None:
    """A training evaluates its averaged weights, which go on to change, again and again."""
    model = trained(build("resnet18", 2))
    before = Predictor(model, INFO, **HOW).logits(PIXELS)
    assert torch.equal(Predictor(model, INFO, **HOW).logits(PIXELS), before)
    with torch.no_grad():
        model.conv1.weight.mul_(2)  # type: ignore[union-attr, operator]
    after = Predictor(model, INFO, **HOW).logits(PIXELS)
    assert not torch.allclose(after, before)
    view = (PIXELS.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        torch.testing.assert_close(after, predict_logits(model, view), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_batch_norm_runs_in_whatever_predicts(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    model = trained(build("resnet18", 2))
    how = {**HOW, "precision": precision}
    predictor, encoder = Predictor(model, INFO, **how), Encoder(model, INFO, **how)
    monkeypatch.delattr(torch, "batch_norm")
    logits, features = predictor.logits_and_features(PIXELS)
    assert torch.equal(predictor.logits(PIXELS), logits)
    assert torch.equal(encoder.features(PIXELS), features)


def test_bf16_is_as_far_from_fp32_as_without_folding() -> None:
    model, images = trained(build("resnet18", 2)), images_of(64, 8)
    with torch.inference_mode():
        exact = predict_logits(model, images)
        plain = predict_logits(model, images, torch.bfloat16)
        with FoldedBatchNorm(model, images[:1]):
            folded = predict_logits(model, images, torch.bfloat16)
    assert 0 < (folded - exact).norm() < 3 * (plain - exact).norm()


def test_no_batch_norm_runs_in_the_teacher_of_a_distillation(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = open_split(digits.data, "labeled").classes
    path = tmp_path / "teacher.safetensors"
    save_model(path, build("resnet18", len(classes)).state_dict(), changed(INFO, classes=classes))
    teacher = Teacher(str(path), Setup(train_job(digits, tmp_path), Ranks(), {}))
    monkeypatch.delattr(torch, "batch_norm")
    assert teacher.logits(torch.rand(2, 3, 8, 8)).shape == (2, len(classes))


def read_after(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    normed = net.norm(features)
    return normed + features if len(x) > 1 else normed


def read_before(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    more = features.amax() if len(x) > 1 else 0
    return net.norm(features) + more


def changed_between(net: Any, x: Tensor) -> Tensor:
    features = net.conv(x)
    return net.norm(features.mul_(2) if len(x) > 1 else features)


def written_elsewhere(net: Any, x: Tensor) -> Tensor:
    features, copy = net.conv(x), torch.zeros(len(x), 8, 8, 8)
    if len(x) > 1:
        copy[:] = features
    return net.norm(features) + copy


@pytest.mark.parametrize("forward", [read_after, read_before, changed_between, written_elsewhere])
def test_what_else_reads_a_folded_convolution_in_a_later_pass_is_an_error(forward: Any) -> None:
    model = small(forward)
    folding = FoldedBatchNorm(model, images_of(8, 1))
    assert len(folding) == 1
    with torch.inference_mode(), pytest.raises(RuntimeError, match="reads one of them"), folding:
        predict_logits(model, images_of(8))


def test_what_a_head_reads_of_a_folded_convolution_is_an_error() -> None:
    class Keeps(Network):
        def forward_features(self, images: Tensor) -> Tensor:
            self.kept = self.conv(images)
            return self.norm(self.kept)

        def forward_head(self, features: Tensor) -> Tensor:
            return (features + self.kept).mean((2, 3))

    model = trained(Keeps(plain_pair, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8)))
    folding = FoldedBatchNorm(model, images_of(8, 1))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="reads one of them"), folding:
        predict_logits(model, images_of(8))


def test_a_branch_on_the_precision_is_an_error() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        features = net.conv(x)
        normed = net.norm(features)
        return normed + features if features.dtype == torch.bfloat16 else normed

    model = small(forward)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="reads"), FoldedBatchNorm(model, images_of(8)):
        predict_logits(model, images_of(8), torch.bfloat16)


def test_a_model_that_differs_later_is_an_error_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_number(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.conv(x)) if len(x) == 1 else net.conv(x) if len(x) == 2 else None  # type: ignore[return-value]

    model = small(by_number)
    folding = FoldedBatchNorm(model, images_of(8, 1))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no BatchNorm followed 1 of them"), folding:
        model.forward_features(images_of(8))  # type: ignore[operator]
    with torch.inference_mode(), folding:
        predict_logits(model, images_of(8, 1))  # nothing is left of the pass that failed
    with torch.inference_mode(), pytest.raises(RuntimeError, match="folds_batch_norm = False"), folding:
        predict_logits(model, images_of(8))
    monkeypatch.setattr(Network, "folds_batch_norm", False, raising=False)
    folding, plain, folded = both(model, images_of(8))
    assert len(folding) == 0
    assert torch.equal(folded, plain)


NAMES = ("conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")


@pytest.mark.parametrize("name", ["conv.weight", *NAMES])
def test_weights_that_were_written_to_since_are_an_error(name: str) -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    with torch.no_grad():
        model.state_dict(keep_vars=True)[name].mul_(2)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="changed"), folding:
        predict_logits(model, images_of(8))


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_were_replaced_since_are_an_error(name: str) -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    model.load_state_dict({name: 2 * model.state_dict()[name]}, strict=False, assign=True)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="changed"), folding:
        predict_logits(model, images_of(8))


def test_another_epsilon_is_an_error() -> None:
    model: Any = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    model.norm.eps = 0.1
    with torch.inference_mode(), pytest.raises(RuntimeError, match="a changed one"), folding:
        predict_logits(model, images_of(8))


def test_a_model_that_trains_meanwhile_is_an_error() -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    model.train()
    with pytest.raises(RuntimeError, match="in training"), folding:
        predict_logits(model, images_of(8))


def test_an_error_of_the_model_is_the_one_that_is_raised_and_leaves_nothing() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        features = net.conv(x)
        if len(x) > 1:
            raise ValueError("of its own")
        return net.norm(features)

    model = small(forward)
    folding = FoldedBatchNorm(model, images_of(8, 1))
    with pytest.raises(ValueError, match="of its own"), torch.inference_mode(), folding:
        predict_logits(model, images_of(8))
    with torch.inference_mode(), folding:
        predict_logits(model, images_of(8, 1))


def test_models_that_predict_within_one_another_keep_to_their_own() -> None:
    first, second = small(plain_pair), trained(build("resnet18", 5))
    with torch.inference_mode():
        expected = predict_logits(first, images_of(32)), predict_logits(second, images_of(32))
        with FoldedBatchNorm(first, images_of(32)), FoldedBatchNorm(second, images_of(32)):
            found = predict_logits(first, images_of(32)), predict_logits(second, images_of(32))
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_other_weights_in_the_place_of_the_folded_ones_are_computed_with() -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    other = {name: value * 2 for name, value in [*model.named_parameters(), *model.named_buffers()]}
    model.forward = model.forward_features  # type: ignore[assignment]
    with torch.inference_mode():
        plain = torch.func.functional_call(model, other, images_of(8))
        with folding:
            assert torch.equal(torch.func.functional_call(model, other, images_of(8)), plain)
