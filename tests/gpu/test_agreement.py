"""What a GPU computes is what a CPU computes: views, labels, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.folding import both, images_of, trained
from support.processes import label_job

from pipeline.config import Config, StrongView, WeakView, changed
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.labels.stage import label_inputs, run_label
from pipeline.labels.store import LabelStore
from pipeline.models import build
from pipeline.models.format import load_model
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import open_folder
from pipeline.stages.interrupt import StopRequest
from pipeline.stages.kinds import KINDS, fingerprint_of
from pipeline.stages.preamble import Stage
from pipeline.stages.ranks import Ranks
from pipeline.views import Views

pytestmark = pytest.mark.gpu


@pytest.fixture
def full_fp32() -> Iterator[None]:
    """By default cuDNN convolves float32 in TF32, whose products have 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("weak", [WeakView(), WeakView(crop="resized")], ids=["pad", "resized"])
def test_a_gpu_makes_the_same_views(device: torch.device, weak: WeakView, size: int) -> None:
    def make(where: torch.device) -> Views:
        strong = StrongView(num_ops=2, magnitude=9, cutout=4)
        return Views(weak, strong, size, mean=(0.5,) * 3, std=(0.25,) * 3, device=where, key_coordinates=(0, 1))

    pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
    images, positions = torch.from_numpy(pixels), np.arange(64, dtype=np.uint64)
    ours, theirs = make(device), make(torch.device("cpu"))
    for name in ("weak_uint8", "strong_uint8"):
        view, expected = getattr(ours, name)(images.to(device), positions), getattr(theirs, name)(images, positions)
        difference = (view.cpu().int() - expected.int()).abs()
        # A tie of bilinear rounding may fall the other way, and then an equalized image moves by more.
        assert (difference > 1).float().mean() < 1e-3, name
        if name == "weak_uint8" and weak.crop == "pad":
            assert torch.equal(view.cpu(), expected)


# ------------------------------------------------------------------------------------------------ labels and evaluation


def log_probs(model: Path, config: Config, device: torch.device, precision: str) -> npt.NDArray[np.float32]:
    """A model's predictions for the val split."""
    val = open_split(config.data, "val")
    network, info = load_model(model)
    predictor = Predictor(network, info, device=device, precision=precision, flip=True)
    return predict(predictor, reader_of(info, val, config.data), len(val), 64)


def test_an_evaluation_on_a_gpu_is_that_of_a_cpu(
    device: torch.device, digits: Config, teacher: Path, full_fp32: None
) -> None:
    ours, expected = (log_probs(teacher, digits, where, "fp32") for where in (device, torch.device("cpu")))
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_evaluation_in_any_precision_finds_the_same_classes(
    device: torch.device, digits: Config, teacher: Path, precision: str
) -> None:
    """With TF32, which is what fp32 is by default."""
    expected = log_probs(teacher, digits, torch.device("cpu"), "fp32")
    ours = log_probs(teacher, digits, device, precision if device.type == "cuda" else "fp32")
    assert (ours.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert np.abs(np.exp(ours) - np.exp(expected)).mean() < 0.01


def test_a_gpu_folds_batch_norm_as_a_cpu_does(device: torch.device, full_fp32: None) -> None:
    model, images = trained(build("resnet18", 5)).to(device), images_of(64, 4).to(device)
    folding, plain, folded = both(model, images)
    assert len(folding) == 20
    torch.testing.assert_close(folded, plain, rtol=1e-3, atol=1e-3)


def test_labels_of_a_gpu_are_those_of_a_cpu(
    device: torch.device, digits: Config, teacher: Path, labels: Path, tmp_path: Path, full_fp32: None
) -> None:
    """The whole stage."""
    runtime = changed(digits.runtime, device=device.type)
    job = changed(label_job(digits, tmp_path / "labels", teacher), runtime=runtime)
    inputs = label_inputs(job)
    open_folder(job.out, job.kind, KINDS[job.kind].version, inputs, {})
    run_label(job, Stage(job.out, fingerprint_of(job, inputs), inputs, StopRequest(listen=False), Ranks()))
    unlabeled = open_split(digits.data, "unlabeled")
    rows = np.arange(len(unlabeled))
    ours, expected = (LabelStore(folder, unlabeled).probabilities(rows) for folder in (job.out, labels))
    np.testing.assert_allclose(ours, expected, atol=1e-3)
