"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from pipeline.config import Training


def peak_lr(training: Training) -> float:
    """The peak learning rate: linear in the images that a step's loss averages over (Goyal 2017, section 2.1)."""
    batch = training.batch_size
    if training.loss_normalization == "total":
        batch += training.unlabeled_batch_size
    return training.optimizer.lr * batch / training.optimizer.lr_batch_size


def lr_at(step: int, training: Training) -> float:
    """Linear warm-up from 0, then half a cosine to 0 at the last step (Bag of Tricks, sections 3.1 and 5.1).

    Step s gets the value at its middle, so neither the first nor the last step is spent at a rate of 0.
    """
    peak, warmup = peak_lr(training), training.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup + 0.5) / max(training.steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
