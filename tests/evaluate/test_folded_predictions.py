"""Whatever predicts has its BatchNorm folded, and says so when a network does not do what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.folding import Network, both, images_of, plain_pair, small, trained
from support.processes import train_job
from torch import Tensor

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


def test_no_batch_norm_runs_in_the_teacher_of_a_distillation(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = open_split(digits.data, "labeled").classes
    path = tmp_path / "teacher.safetensors"
    save_model(path, build("resnet18", len(classes)).state_dict(), changed(INFO, classes=classes))
    teacher = Teacher(str(path), Setup(train_job(digits, tmp_path), Ranks(), {}))
    monkeypatch.delattr(torch, "batch_norm")
    assert teacher.logits(torch.rand(2, 3, 8, 8)).shape == (2, len(classes))


def test_a_model_that_takes_another_way_later_is_an_error_with_the_fix() -> None:
    def by_number(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.conv(x)) if len(x) == 1 else net.conv(x)

    model = small(by_number)
    folding = FoldedBatchNorm(model, images_of(8, 1))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="folds_batch_norm = False"), folding:
        predict_logits(model, images_of(8))
    with torch.inference_mode(), folding:
        predict_logits(model, images_of(8, 1))  # nothing is left of the pass that failed
    Network.folds_batch_norm = False  # type: ignore[attr-defined]
    try:
        folding, plain, folded = both(model, images_of(8))
    finally:
        del Network.folds_batch_norm  # type: ignore[attr-defined]
    assert len(folding) == 0
    assert torch.equal(folded, plain)


def test_a_model_that_trains_meanwhile_is_an_error() -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    model.train()
    with pytest.raises(RuntimeError, match="in training"), folding:
        predict_logits(model, images_of(8))


def test_an_error_of_the_model_is_the_one_that_is_raised() -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    with pytest.raises(RuntimeError, match="expected input"), torch.inference_mode(), folding:
        predict_logits(model, torch.zeros(1, 4, 8, 8))


def test_other_weights_in_the_place_of_the_folded_ones_are_computed_with() -> None:
    model = small(plain_pair)
    folding = FoldedBatchNorm(model, images_of(8))
    other = {name: value * 2 for name, value in [*model.named_parameters(), *model.named_buffers()]}
    model.forward = model.forward_features  # type: ignore[assignment]
    with torch.inference_mode():
        plain = torch.func.functional_call(model, other, images_of(8))
        with folding:
            assert torch.equal(torch.func.functional_call(model, other, images_of(8)), plain)
