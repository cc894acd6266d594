"""What a step sees of unlabeled images without pseudo-labels: two views of each, weak and strong."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.config import Training
from pipeline.train.batches import Batch
from pipeline.views import Views


@dataclass(frozen=True)
class JointBatch:
    """Labeled images and two views of unlabeled ones, on the device. Images are float32 [N, 3, S, S], normalized."""

    labeled: Tensor
    """The L labeled images."""
    labels: Tensor
    """int64 [L]"""
    weak: Tensor
    """The U unlabeled images."""
    strong: Tensor
    """Another view of them."""


def see(batch: Batch, images: Tensor, labels: Tensor, views: Views, training: Training) -> JointBatch:
    """The views of one micro-batch.

    Args:
        batch: The micro-batch on the host.
        images: Its images on the device, uint8 [L + U, S, S, 3], labeled ones first.
        labels: Its labels on the device, int64 [L].
        views: What makes the views.
        training: Says whether labeled images get the strong view.
    """
    num_labeled = batch.num_labeled
    labeled, unlabeled = images[:num_labeled], images[num_labeled:]
    of_labeled, of_unlabeled = batch.positions[:num_labeled], batch.positions[num_labeled:]
    noisy = views.strong if training.noise_labeled else views.weak
    return JointBatch(
        labeled=noisy(labeled, of_labeled),
        labels=labels,
        weak=views.weak(unlabeled, of_unlabeled),
        strong=views.strong(unlabeled, of_unlabeled),
    )
