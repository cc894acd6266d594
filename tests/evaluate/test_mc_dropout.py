"""Samples with dropout on, against masks that are drawn by hand, and against what dropout is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_stages import with_section
from support.images import class_files, write_files
from support.saved import save_random
from torch import nn
from torch.nn import functional as F

from pipeline.config import Config, Evaluate, Runtime
from pipeline.config.base import dump_yaml
from pipeline.errors import UserError
from pipeline.evaluate.on_demand import evaluate_on, how_to_see
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.models import build
from pipeline.models.dropping import add_dropout
from pipeline.models.format import load_model, read_info
from pipeline.models.mc_dropout import PositionedDropout, sample_logits
from pipeline.randomness import key_of, uniforms
from pipeline.runs.beside import beside
from pipeline.shards.dataset import open_split
from pipeline.stages.machine import resolve

RUNTIME = resolve(Runtime(device="cpu", threads=1, precision="fp32"))
ROWS = np.arange(40, 46)
IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3, 8, 8))).float()


def network(name: str = "wide_resnet10_1", dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return build(name, 4, dropout=dropout).eval()


@torch.inference_mode()
def test_samples_are_those_of_masks_drawn_by_hand() -> None:
    model = network(dropout=0.3)
    found = sample_logits(model, IMAGES, None, ROWS, 3)
    features = model.forward_head(model.forward_features(IMAGES), pre_logits=True)  # type: ignore[operator]
    classifier = model.get_classifier()  # type: ignore[operator]
    for sample, logits in enumerate(found):
        draws = uniforms(key_of(0, "mc_dropout", sample, 0), ROWS, features.shape[1])
        mask = torch.from_numpy((draws >= 0.3) / 0.7).float()
        torch.testing.assert_close(logits, classifier(features * mask))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnet9", "wide_resnet10_1"])
def test_only_dropout_is_on(name: str) -> None:
    """With a mask of ones a sample is the prediction: statistics, paths and all else are those of eval mode."""
    images = F.interpolate(IMAGES[:2], (32, 32))
    model = build(name, 4, dropout=1e-12, stochastic_depth=0.5).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    (sample,) = sample_logits(model, images, None, ROWS[:2], 1)
    torch.testing.assert_close(sample, model(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@torch.inference_mode()
def test_dropout_inside_the_body_is_drawn_per_layer_and_sample() -> None:
    class Deep(nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout2d(F.dropout(x.flatten(2), 0.5, self.training)[:, :, :, None], 0.5, self.training)

        def forward_head(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    first, second = sample_logits(Deep(), torch.ones(6, 8, 5, 5), None, ROWS, 2)
    assert not torch.equal(first, second)
    channels = first.view(6, 8, 25)
    assert set(first.unique().tolist()) == {0.0, 4.0}
    assert 0.2 < float((channels == 0).all(2).float().mean()) < 0.8, "dropout2d drops whole channels"
    assert 0.1 < float((channels[(channels != 0).any(2)] == 0).float().mean()) < 0.9, "and dropout single features"


@torch.inference_mode()
@pytest.mark.parametrize(
    "where", [{"block_dropout": 0.4}, {"dropout_at": {"norm": 0.4}}, {"dropout_at": {"blocks.1": 0.4}, "dropout": 0.2}]
)
def test_dropout_of_blocks_and_at_any_place_is_on_and_off_again(where: dict[str, Any], tmp_path: Path) -> None:
    """What model.json says of it is enough, and every pass without samples is that of the network without any."""
    path, images = save_random(tmp_path / "m.safetensors", ("cat", "dog"), **where), IMAGES
    (model, info), (plain, _) = load_model(path, dropout=True), load_model(path)
    assert {key: getattr(info, key) for key in where} == where
    assert torch.equal(model(images), plain(images))
    first, second = sample_logits(model, images, None, ROWS, 2)
    assert not torch.equal(first, second)
    torch.testing.assert_close(sample_logits(model, images[2:4], None, ROWS[2:4], 1)[0], first[2:4])
    assert torch.equal(model(images), plain(images))


@torch.inference_mode()
def test_samples_of_a_place_are_those_of_a_mask_drawn_by_hand() -> None:
    model = network(dropout=0.0)
    add_dropout(model, 0.0, {"norm": 0.3})
    (found,) = sample_logits(model, IMAGES, None, ROWS, 1)
    seen: list[torch.Tensor] = []
    model.get_submodule("norm").register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    model(IMAGES)
    draws = uniforms(key_of(0, "mc_dropout", 0, 0), ROWS, seen[0][0].numel())
    mask = torch.from_numpy((draws >= 0.3) / 0.7).float().view(seen[0].shape)
    features = F.leaky_relu(seen[0] * mask, 0.2).mean((2, 3))
    torch.testing.assert_close(found, model.get_classifier()(features))  # type: ignore[operator]


@torch.inference_mode()
def test_the_mean_of_many_samples_is_that_of_torchs_own_dropout() -> None:
    model = network()
    ours = torch.stack(sample_logits(model, IMAGES, None, ROWS, 2000)).mean(0)
    head = model.forward_head(model.forward_features(IMAGES), pre_logits=True)  # type: ignore[operator]
    torch.manual_seed(1)
    theirs = torch.stack([model.get_classifier()(F.dropout(head, 0.5)) for _ in range(2000)])  # type: ignore[operator]
    error = theirs.std(0) * (2 / 2000) ** 0.5
    assert float(((ours - theirs.mean(0)).abs() / error).max()) < 5


@torch.inference_mode()
def test_answers_depend_on_no_batch_size_or_order(digits: Config, tmp_path: Path) -> None:
    val = open_split(digits.data, "val")
    saved = save_random(tmp_path / "m.safetensors", val.classes, dropout=0.5)
    model, info = load_model(saved, dropout=True)
    predictor = Predictor(model, info, device=torch.device("cpu"), precision="fp32", flip=True, mc_dropout=3)
    reader = reader_of(info, val, digits.data)
    whole, parts = (predict(predictor, reader, 50, size) for size in (50, 7))
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    rows = np.arange(49, -1, -1)
    backwards = predictor.logits(predictor.read(reader, rows), rows).log_softmax(1)
    np.testing.assert_allclose(backwards.flip(0), whole, atol=1e-5)
    plain = Predictor(*load_model(saved), device=torch.device("cpu"), precision="fp32", flip=True)
    assert np.abs(whole - predict(plain, reader, 50, 50)).max() > 0.01


def test_a_model_without_dropout_is_refused(tmp_path: Path) -> None:
    classes = ("cat", "dog", "emu")
    images = write_files(tmp_path / "in", class_files(2))
    without, with_it = (
        save_random(tmp_path / f"{name}.safetensors", classes, dropout=rate) for name, rate in (("a", 0.0), ("b", 0.5))
    )
    how = Evaluate(mc_dropout=4)
    with pytest.raises(UserError, match="was trained without `dropout`, `block_dropout` and `dropout_at`"):
        evaluate_on(without, images, "val", how, RUNTIME)
    sampled, plain = (evaluate_on(with_it, images, "val", each, RUNTIME).metrics for each in (how, Evaluate()))
    assert sampled.nll != plain.nll


def test_a_model_remembers_its_dropout_and_one_without_has_the_json_of_before(
    digits: Config, teacher: Path, student: Path
) -> None:
    assert read_info(student).dropout == digits.student.dropout == 0.1
    assert '"dropout"' not in (teacher / "model.json").read_text()


def test_a_position_is_in_no_way_that_of_the_batch() -> None:
    with PositionedDropout(ROWS, 0):
        whole = F.dropout(torch.ones(6, 30), 0.5, training=False)
    with PositionedDropout(ROWS[3:4], 0):
        alone = F.dropout(torch.ones(1, 30), 0.5, training=False)
    assert torch.equal(whole[3:4], alone)
    assert torch.equal(F.dropout(torch.ones(3), 0.5, training=False), torch.ones(3)), "it ends with the block"


def test_a_run_whose_final_model_has_none_says_so(
    digits: Config, teacher: Path, student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.methods.round import Round

    config = with_section(digits, "evaluate", mc_dropout=4)
    finals = [Round(1, "student", "net", 0.5, (0.4, 0.6), None, True, path, None, None) for path in (student, teacher)]
    assert [beside(config, [final], final).job()["sampled"] for final in finals] == ["final", None]
    assert "evaluate.mc_dropout is 4, but the final model was trained without dropout" in caplog.text


def test_a_model_of_a_run_that_samples_is_measured_without_unless_asked(digits: Config, tmp_path: Path) -> None:
    """The run reports samples beside its model; whatever measures the model or predicts by it takes the model."""
    run = tmp_path / "run"
    (run / "rounds").mkdir(parents=True)
    (run / "run.lock").touch()
    config = with_section(digits, "evaluate", mc_dropout=8, flip=True)
    (run / "config.yaml").write_text(dump_yaml(config))
    how, _ = how_to_see(run / "rounds")
    assert (how.mc_dropout, how.flip) == (0, True)
