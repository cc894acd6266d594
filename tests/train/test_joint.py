"""The views of methods without stored pseudo-labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import StrongView, Training, WeakView
from pipeline.train.batches import Batch
from pipeline.train.joint import see
from pipeline.views import Views


@pytest.mark.parametrize("noise_labeled", [False, True])
def test_unlabeled_images_have_both_views_and_labeled_ones_that_of_noise_labeled(noise_labeled: bool) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8))
    positions = np.arange(7, dtype=np.uint64)
    batch = Batch(images, positions, labels=torch.tensor([1, 0, 2]), targets=torch.empty(4, 0))
    training = Training(image_size=8, noise_labeled=noise_labeled, unlabeled_ratio=1.0)
    views = Views(
        WeakView(padding=2), StrongView(num_ops=2, cutout=4), 8, mean=(0.5,) * 3, std=(0.2,) * 3, device="cpu"
    )
    seen = see(batch, images, batch.labels, views, training)
    weak, strong = views.weak(images, positions), views.strong(images, positions)
    assert torch.equal(seen.weak, weak[3:])
    assert torch.equal(seen.strong, strong[3:])
    assert torch.equal(seen.labeled, (strong if noise_labeled else weak)[:3])
    assert torch.equal(seen.labels, batch.labels)
    assert not torch.equal(seen.weak, seen.strong)
    assert not torch.equal(weak[:3], strong[:3])
