"""Preprocessing computed from the labeled images, against numpy in float64, through training, labels and export."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.learners import learner_of
from support.processes import label_job, outputs, run, signal_at, train_job
from typer.testing import CliRunner

from pipeline.cli.app import app
from pipeline.config import Config, Evaluate, Finetune, Runtime, Training, changed, parse
from pipeline.errors import UserError
from pipeline.evaluate.on_demand import evaluate_on
from pipeline.files import read_json
from pipeline.labels.store import LabelStore
from pipeline.models.format import described, load_model, read_info, save_model
from pipeline.models.input import input_of, with_input_of
from pipeline.models.preprocessing import PREFIX
from pipeline.predict.prediction import Wanted, predict_images
from pipeline.runs.finetune import finetuning
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.stages.machine import resolve

KINDS = ["mean", "mean_std", "mean_image", "pca_whitening"]
STD = (0.5, 0.25, 0.125)
RUNTIME = resolve(Runtime(device="cpu", threads=1, precision="fp32"))


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


def test_whitened_images_have_no_correlations(digits: Config, tmp_path: Path) -> None:
    """All variances that are large beside eps become 1, and no two directions go together (CS231n, preprocessing): in
    what a network is given of the labeled images."""
    labeled = images_of(digits, "labeled")
    flat = labeled.reshape(len(labeled), -1)
    learner = learner_of(train_job(digits, tmp_path, training=training_of(digits, "pca_whitening")))
    given = learner.setup.views().center(torch.from_numpy((labeled * 255).round().astype(np.uint8)))
    whitened = given.permute(0, 2, 3, 1).flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    covariance = vectors.T @ np.cov(whitened.T, bias=True) @ vectors
    eps = 0.01 * flat.var(0).mean()
    np.testing.assert_allclose(covariance, np.diag(values / (values + eps)), atol=1e-4)
    assert covariance.diagonal().max() > 0.95


def answers_by_numpy(folder: Path, kind: str, digits: Config, images: np.ndarray) -> np.ndarray:
    """The probabilities [N, 10] of a model for images in 0..1, by the definition of its preprocessing."""
    model, _ = load_model(folder)
    seen = torch.from_numpy(expected_input(kind, images, images_of(digits, "labeled"))).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        return np.asarray(model(seen.contiguous(memory_format=torch.channels_last)).double().softmax(1))


def save_drawn(folder: Path, digits: Config, kind: str, **values: Any) -> Path:
    """A model with arrays whose weights are those before the first step; returns its stage."""
    learner = learner_of(train_job(digits, folder, training=training_of(digits, kind, **values)))
    assert learner.model.info is not None
    (folder / "stage").mkdir()
    save_model(folder / "stage/model.safetensors", learner.model.ema.model.state_dict(), learner.model.info)
    return folder / "stage"


def test_labels_and_the_evaluations_of_a_training_see_what_it_saw(
    trained: tuple[str, Path], digits: Config, tmp_path: Path
) -> None:
    kind, folder = trained
    of_val, truth = (
        answers_by_numpy(folder, kind, digits, images_of(digits, "val")),
        open_split(digits.data, "val").labels,
    )
    nll = -np.log(of_val[np.arange(len(truth)), truth]).mean()
    assert read_json(folder / "evaluation-val.json")["nll"] == pytest.approx(nll, rel=2e-3)
    expected = answers_by_numpy(folder, kind, digits, images_of(digits, "unlabeled")).max(1)
    labels = LabelStore(run(label_job(digits, tmp_path / "label", folder)), open_split(digits.data, "unlabeled"))
    np.testing.assert_allclose(labels.confidence, expected, atol=2e-3)


@pytest.mark.parametrize("kind", ["mean_image", "pca_whitening"])
def test_evaluate_and_predict_see_what_the_training_saw(digits: Config, tmp_path: Path, kind: str) -> None:
    folder = save_drawn(tmp_path, digits, kind)
    assert isinstance(digits.data.root, Path)
    val = images_of(digits, "val")
    expected, labels = answers_by_numpy(folder, kind, digits, val), open_split(digits.data, "val").labels
    nll = -np.log(expected[np.arange(len(labels)), labels]).mean()
    found = evaluate_on(folder, digits.data.root, "val", Evaluate(), RUNTIME).metrics
    assert found.nll == pytest.approx(nll, rel=2e-3)
    assert found.top1 == pytest.approx((expected.argmax(1) == labels).mean(), abs=1.5 / len(labels))

    (tmp_path / "in").mkdir()
    for number, image in enumerate(val[:20]):
        Image.fromarray((image * 255).round().astype(np.uint8)).save(tmp_path / f"in/{number:02}.png")
    wanted = Wanted(out=tmp_path / "out.csv", probabilities=True)
    predict_images(folder, tmp_path / "in", wanted, Evaluate(), RUNTIME)
    rows = sorted(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())), key=lambda row: row["image"])
    names = read_info(folder).classes
    answers = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose(answers, expected[:20], atol=2e-3)


@pytest.mark.parametrize("kind", ["mean_image", "pca_whitening"])
@pytest.mark.parametrize("activation", [None, "elu"])
def test_what_export_prints_normalizes_images_as_evaluate_does(
    digits: Config, tmp_path: Path, kind: str, activation: str | None
) -> None:
    """The printed lines are executed as they stand; for an activation that timm has no argument for, too."""
    assert isinstance(digits.data.root, Path)
    folder, out = save_drawn(tmp_path, digits, kind, activation=activation), tmp_path / "digits.safetensors"
    done = CliRunner().invoke(app, ["export", str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    scope: dict[str, Any] = {}
    exec(done.output.split("In Python:")[1], scope)
    images = torch.from_numpy(images_of(digits, "val")).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        log_probs = scope["model"](scope["normalize"](images)).double().log_softmax(1).numpy()
    labels = open_split(digits.data, "val").labels
    found = evaluate_on(out, digits.data.root, "val", Evaluate(), RUNTIME)
    assert found.metrics.nll == pytest.approx(-log_probs[np.arange(len(labels)), labels].mean(), rel=1e-4)
    assert (found.answers.pred == log_probs.argmax(1)).mean() > 0.99
    assert read_info(out) == read_info(folder)
    with torch.inference_mode():
        unprepared = scope["model"](images).double().log_softmax(1).numpy()
    assert abs(found.metrics.nll + unprepared[np.arange(len(labels)), labels].mean()) > 1e-3


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
    """Its labeled images are not those of the model that it starts from, or else all three would be alike."""
    kind, folder = trained
    assert isinstance(digits.data.root, Path)
    before = arrays_of(load_model(folder)[0].state_dict())
    more = changed(digits, data=changed(digits.data, labeled=sorted(digits.data.root.glob("val-*.tar"))))
    labeled = images_of(more, "labeled")
    assert len(labeled) == len(images_of(digits, "labeled")) + len(images_of(digits, "val"))

    def arrays(mode: str, kind: str) -> dict[str, torch.Tensor]:
        training = training_of(digits, kind, steps=30, start={"model": str(folder), "mode": mode})
        return arrays_of(learner_of(train_job(more, tmp_path, training=training)).model.ema.model.state_dict())

    for mode in ("use", "continue"):
        found = arrays(mode, kind)
        assert found.keys() == before.keys()
        assert all(torch.equal(found[name], before[name]) for name in before)
    found = arrays("init", kind)
    assert found.keys() == before.keys()
    assert not any(torch.equal(found[name], before[name]) for name in before)
    np.testing.assert_allclose(found[f"{PREFIX}mean"], labeled.mean(0), atol=1e-6)
    assert arrays("init", "mean") == {}


def arrays_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(PREFIX)}


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
