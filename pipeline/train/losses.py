"""The losses: pure functions on logits, in fp32.

Shapes: B images, C classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_cross_entropy(logits_BC: Tensor, labels_B: Tensor, smoothing: float) -> Tensor:
    """The cross-entropy with label smoothing, one value per image, [B] (Szegedy 2016, section 7)."""
    return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=smoothing)


def soft_cross_entropy(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """The cross-entropy against a distribution, never smoothed, one value per image, [B] (Noisy Student, eq. 2)."""
    return -(targets_BC * F.log_softmax(logits_BC.float(), dim=1)).sum(1)


def smooth_one_hot(labels_B: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """The targets [B, C] that `hard_cross_entropy` stands for: smoothed labels (Szegedy 2016, section 7)."""
    return F.one_hot(labels_B, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def distillation_loss(logits_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergence of softmax(logits / T) from softmax(teacher / T), one value per image, [B].

    That is T^2 l(softmax(r/T), softmax(z/T)) of Hinton (2015, section 2; Bag of Tricks 5.3) minus the entropy of the
    teacher's distribution. The entropy is no function of the student, so the gradient is the paper's, and without it
    the loss is 0 where they agree, instead of T^2 log C at most. The factor keeps the gradient's size over T.
    """
    student, teacher = (F.log_softmax(z.float() / temperature, dim=1) for z in (logits_BC, teacher_BC))
    return temperature**2 * (teacher.exp() * (teacher - student)).sum(1)


def combine(
    labeled: Tensor, unlabeled: Tensor, normalization: Literal["total", "labeled"], *, num_labeled: int, num_total: int
) -> Tensor:
    """The loss of a step [] from the losses of its images, labeled [L] and unlabeled [U].

    All images weigh the same; only the divisor is a convention. `total` is the mean over all images, as in the text of
    Noisy Student. `labeled` divides by the labeled images alone, as in its code: mean(labeled) + ratio *
    mean(unlabeled).
    """
    return (labeled.sum() + unlabeled.sum()) / (num_total if normalization == "total" else num_labeled)


def num_correct(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The number of images whose argmax is their label, float32 [] on the device."""
    return (logits_BC.argmax(1) == labels_B).sum(dtype=torch.float32)


def mean_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy over images, [...], of logits [..., N, C] and labels int64 [..., N]. The dimensions "..."
    are independent networks side by side."""
    labels = labels.expand(logits.shape[:-1])
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", label_smoothing=smoothing)
    return losses.view(labels.shape).mean(-1)
