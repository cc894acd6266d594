"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.config import NetworkSettings


def peak_lr(settings: NetworkSettings, num_images: int) -> float:
    """The peak learning rate, linear in the images that a step's loss averages over (Goyal 2017, section 2.1)."""
    return settings.optimizer.lr * num_images / settings.optimizer.lr_batch_size


def lr_at(step: int, settings: NetworkSettings, *, steps: int, num_images: int, falls: Sequence[int] = ()) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine (Bag of Tricks, sections 3.1 and 5.1), or the
    peak times `schedule.factor` for each fall until there (Bag of Tricks, section 2.1; AlexNet, section 5).

    Warm-up step s has (s + 1) / (warmup + 1) of the peak, and a later step the cosine at the step's middle. So neither
    the first nor the last step is spent at a rate of 0.

    Args:
        step: The step, from 0.
        settings: The network's optimizer, warm-up and schedule.
        steps: The number of steps in all.
        num_images: The images per step that the peak is scaled with.
        falls: The steps from which on a plateau has lowered the rate. Other schedules know theirs.
    """
    peak, warmup, schedule = peak_lr(settings, num_images), settings.warmup_steps, settings.schedule
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule is not None:
        known = falls if schedule.name == "plateau" else schedule.falls(steps)
        return float(peak * schedule.factor ** sum(fall <= step for fall in known))
    progress = (step - warmup + 0.5) / max(steps - warmup, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
