"""Labels of two teachers against the mean of what each says by itself, in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.processes import label_job, run

from pipeline.config import Config, changed
from pipeline.labels.store import LabelStore
from pipeline.models.format import load_model
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader


def test_labels_are_the_mean_of_the_teachers_probabilities(
    digits: Config, teacher: Path, student: Path, tmp_path: Path
) -> None:
    unlabeled = open_split(digits.data, "unlabeled")
    config = changed(digits, label=changed(digits.label, ensemble=2))
    stored = LabelStore(run(label_job(config, tmp_path / "label", student, teacher)), unlabeled)
    rows = np.arange(len(unlabeled))
    pixels = Reader(unlabeled, 8, digits.data).read(rows) / 255
    views = (pixels - np.array(digits.teacher.mean)) / np.array(digits.teacher.std)
    images = torch.from_numpy(views).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        first, second = (load_model(folder)[0].eval()(images).softmax(1).numpy() for folder in (teacher, student))
    expected = (first + second) / 2
    assert np.abs(first - second).max() > 0.01, "teachers that agree would show nothing"
    np.testing.assert_allclose(stored.probabilities(rows), expected, atol=1e-5)
    np.testing.assert_array_equal(stored.label, expected.argmax(1))
