"""Preprocessing computed from the labeled images, against numpy in float64, through training, labels and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.learners import learner_of
from support.processes import label_job, outputs, run, signal_at, train_job
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import Config, Finetune, Training, parse
from pipeline.errors import UserError
from pipeline.labels.store import LabelStore
from pipeline.models.format import described, load_model, read_info
from pipeline.models.input import input_of, with_input_of
from pipeline.models.preprocessing import PREFIX
from pipeline.runs.finetune import finetuning
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader

KINDS = ["mean", "mean_std", "mean_image", "pca_whitening"]
STD = (0.5, 0.25, 0.125)


def training_of(digits: Config, kind: str, **values: Any) -> Training:
    """A training in 20 steps with a computed normalization; where it is still read, `std` is STD."""
    raw = {key: value for key, value in digits.teacher.model_dump(mode="json").items() if key not in ("mean", "std")}
    raw |= {} if kind in ("mean_std", "pca_whitening") else {"std": STD}
    return parse(Training, {**raw, "preprocessing": kind, "steps": 20, "evaluations": 1, **values}, "test")


def images_of(digits: Config, split: str) -> np.ndarray:
    """The images of a split in 0..1, float64 [N, 8, 8, 3]."""
    dataset = open_split(digits.data, split)  # type: ignore[arg-type]
    return Reader(dataset, 8, digits.data).read(np.arange(len(dataset))) / 255


def expected_input(kind: str, images: np.ndarray, labeled: np.ndarray) -> np.ndarray:
    """The definition of each kind, by numpy, from the labeled images."""
    if kind == "mean":
        return (images - labeled.mean((0, 1, 2))) / STD
    if kind == "mean_std":
        return (images - labeled.mean((0, 1, 2))) / labeled.std((0, 1, 2))
    if kind == "mean_image":
        return (images - labeled.mean(0)) / STD
    centered = labeled.reshape(len(labeled), -1) - labeled.reshape(len(labeled), -1).mean(0)
    _, singular, directions = np.linalg.svd(centered)  # knows of no covariance
    variances = np.zeros(len(directions))  # of directions in which the labeled images do not differ
    variances[: len(singular)] = singular**2 / len(labeled)
    eps = 0.01 * centered.var(0).mean()
    rotated = (images.reshape(len(images), -1) - labeled.reshape(len(labeled), -1).mean(0)) @ directions.T
    return ((rotated / np.sqrt(variances + eps)) @ directions).reshape(images.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_of_a_network_is_that_of_numpy(digits: Config, tmp_path: Path, kind: str) -> None:
    labeled, val = images_of(digits, "labeled"), images_of(digits, "val")
    images = torch.from_numpy((val * 255).round().astype(np.uint8))
    learner = learner_of(train_job(digits, tmp_path, training=training_of(digits, kind)))
    found = learner.setup.views().center(images).permute(0, 2, 3, 1)
    np.testing.assert_allclose(
        found, expected_input(kind, val, labeled), atol=2e-4 if kind == "pca_whitening" else 2e-5
    )
    info = learner.model.info
    assert info is not None
    if kind == "mean_std":
        np.testing.assert_allclose(info.mean, labeled.mean((0, 1, 2)))
        np.testing.assert_allclose(info.std, labeled.std((0, 1, 2)))
    has_arrays = kind in ("mean_image", "pca_whitening")
    assert described(info).get("preprocessing", "given") == (kind if has_arrays else "given")


@pytest.fixture(scope="module", params=["mean_image", "pca_whitening"])
def trained(
    request: pytest.FixtureRequest, digits: Config, children: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A model with arrays."""
    out = tmp_path_factory.mktemp("preprocessing") / "train"
    return request.param, run(train_job(digits, out, training=training_of(digits, request.param)))


def test_whitened_images_have_no_correlations(digits: Config) -> None:
    """All variances that are large beside eps become 1, and no two directions go together (CS231n, preprocessing)."""
    labeled = images_of(digits, "labeled")[..., :1]  # digits are grey: three equal channels have a third of the rank
    flat = labeled.reshape(len(labeled), -1)
    whitened = expected_input("pca_whitening", labeled, labeled).reshape(len(labeled), -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    covariance = vectors.T @ np.cov(whitened.T, bias=True) @ vectors
    eps = 0.01 * flat.var(0).mean()
    np.testing.assert_allclose(covariance, np.diag(values / (values + eps)), atol=1e-9)


def test_labels_and_evaluation_see_what_the_training_saw(
    trained: tuple[str, Path], digits: Config, tmp_path: Path
) -> None:
    kind, folder = trained
    model, _ = load_model(folder)
    unlabeled = images_of(digits, "unlabeled")
    seen = torch.from_numpy(expected_input(kind, unlabeled, images_of(digits, "labeled"))).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = torch.softmax(model(seen.contiguous(memory_format=torch.channels_last)), 1).amax(1)
    labels = LabelStore(run(label_job(digits, tmp_path / "label", folder)), open_split(digits.data, "unlabeled"))
    np.testing.assert_allclose(labels.confidence, expected, atol=2e-3)


def test_what_export_prints_makes_the_network_without_the_arrays(trained: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = trained
    out = tmp_path / "digits.safetensors"
    done = CliRunner().invoke(app, ["export", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    scope: dict[str, Any] = {}
    exec(done.output.split("In Python:")[1], scope)
    model, info = load_model(out)
    assert info == read_info(folder)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(scope["model"](images), model(images))


def test_a_start_hands_its_preprocessing_on_and_a_fine_tune_keeps_it(trained: tuple[str, Path], digits: Config) -> None:
    kind, folder = trained
    info = read_info(folder)
    raw = {"image_size": 8, "model": "wide_resnet10_1", "start": {"model": str(folder)}}
    asked = parse(Training, raw, "test")
    assert asked.start is not None
    found = with_input_of(asked.start, asked, "teacher")
    assert found.preprocessing == info.preprocessing
    assert input_of(asked.start, asked.model)["preprocessing"] == info.preprocessing
    assert kind == "pca_whitening" or found.std == STD
    tuned = finetuning(Finetune(image_size=12, steps=2), folder, digits.teacher)
    assert (tuned.preprocessing, tuned.image_size) == (info.preprocessing, 12)


def test_resume_is_bit_exact_with_arrays(trained: tuple[str, Path], digits: Config, tmp_path: Path) -> None:
    kind, whole = trained
    cut = train_job(digits, tmp_path / "cut", training=training_of(digits, kind))
    signal_at(cut, 10)
    assert outputs(run(cut)) == outputs(whole)


def test_a_training_takes_over_what_it_uses_or_continues_and_computes_it_for_others(
    trained: tuple[str, Path], digits: Config, tmp_path: Path
) -> None:
    kind, folder = trained
    before = load_model(folder)[0].state_dict()[f"{PREFIX}mean"]

    def arrays(mode: str, kind: str) -> dict[str, torch.Tensor]:
        training = training_of(digits, kind, steps=30, start={"model": str(folder), "mode": mode})
        state = learner_of(train_job(digits, tmp_path, training=training)).model.ema.model.state_dict()
        return {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}

    for mode in ("use", "continue", "init"):
        assert torch.equal(arrays(mode, kind)[f"{PREFIX}mean"], before)
    assert arrays("init", "mean") == {}


def test_a_training_with_arrays_continues(trained: tuple[str, Path], digits: Config, tmp_path: Path) -> None:
    kind, folder = trained
    start = {"model": str(folder), "mode": "continue"}
    longer = run(train_job(digits, tmp_path / "on", training=training_of(digits, kind, steps=30, start=start)))
    before, after = (load_model(path)[0].state_dict()[f"{PREFIX}mean"] for path in (folder, longer))
    assert torch.equal(before, after)
    other = training_of(digits, "mean", steps=30, start=start)
    with pytest.raises(UserError, match=rf"`preprocessing`: .* was trained with {kind}, which"):
        run(train_job(digits, tmp_path / "other", training=other))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preprocessing": "mean", "mean": [0.1, 0.2, 0.3]}, "mean is .*drop mean"),
        ({"preprocessing": "pca_whitening", "std": [0.1, 0.2, 0.3]}, "std is .*drop std"),
        ({"preprocessing": "pca_whitening", "image_size": 224}, r"150,528\^2 numbers.*at most 40"),
        ({"preprocessing": "mean_image", "evaluation_size": 40}, "drop evaluation_size"),
        ({"preprocessing": "mean_std", "probe": {}, "start": {"model": "timm:x"}}, "a probe's encoder"),
        ({"preprocessing": "zca"}, "preprocessing"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Training, values, "test")
