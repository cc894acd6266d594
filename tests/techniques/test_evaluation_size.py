"""A model that is evaluated at another size than it was trained at, against plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.processes import label_job, run, train_job

from pipeline.config import Config, changed
from pipeline.files import read_json
from pipeline.labels.store import LabelStore
from pipeline.models.format import load_model
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.reader import Reader


def test_a_model_labels_and_is_evaluated_at_its_own_size(digits: Config, children: None, tmp_path: Path) -> None:
    training = changed(digits.teacher, evaluation_size=12, steps=20)
    teacher = run(train_job(digits, tmp_path / "train", training=training))
    assert read_json(teacher / "stage.json")["config"]["training"]["image_size"] == 8
    assert load_model(teacher)[1].input_size == (3, 12, 12)
    val, unlabeled = open_split(digits.data, "val"), open_split(digits.data, "unlabeled")
    with np.load(teacher / "predictions-val.npz") as answers:
        np.testing.assert_allclose(answers["confidence"], confidences(teacher, val, digits), atol=1e-4)
    labels = LabelStore(run(label_job(digits, tmp_path / "label", teacher)), unlabeled)
    np.testing.assert_allclose(labels.confidence, confidences(teacher, unlabeled, digits), atol=1e-4)


def confidences(folder: Path, dataset: Dataset, config: Config) -> np.ndarray:
    """Those of a model on images of 8 pixels that are resized to 12."""
    model, info = load_model(folder)
    pixels = Reader(dataset, 8, changed(config.data, cache="never")).read(np.arange(len(dataset)))
    larger = [np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC)) for image in pixels]
    views = (np.stack(larger) / 255 - np.array(info.mean)) / np.array(info.std)
    with torch.inference_mode():
        probabilities = model(torch.from_numpy(views).float().permute(0, 3, 1, 2)).softmax(1)
    return np.asarray(probabilities.max(1).values)
