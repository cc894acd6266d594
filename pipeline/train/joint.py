"""The batch of a method without stored pseudo-labels: it has two views of each unlabeled image, weak and strong."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.config import Training
from pipeline.train.batches import Batch
from pipeline.views import Views


@dataclass(frozen=True)
class JointBatch:
    """L labeled images and two views of U unlabeled ones, normalized, on the device."""

    labeled: Tensor
    """The labeled images, float32 [L, 3, S, S]."""
    labels: Tensor
    """The labels, int64 [L]."""
    weak: Tensor
    """The weak views of the unlabeled images, float32 [U, 3, S, S]."""
    strong: Tensor
    """The strong views of the same images, float32 [U, 3, S, S]."""


def see(batch: Batch, images: Tensor, labels: Tensor, views: Views, training: Training) -> JointBatch:
    """The views of one micro-batch.

    Args:
        batch: The micro-batch on the host.
        images: Its images on the device, uint8 [L + U, S, S, 3], labeled ones first.
        labels: Its labels on the device, int64 [L].
        views: The maker of the views.
        training: It says whether labeled images get the strong view.
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
