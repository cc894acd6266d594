"""The starting config for small images: networks that train from random weights."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.arrays import F64Array, U8Array
from pipeline.config import changed
from pipeline.starter.given import Given, Lengths
from pipeline.starter.recipe import Recipe, recipe
from pipeline.starter.speed import Network, training_speed

_NUM_IMAGES = 500  # to take mean and standard deviation of
_OVERHEAD = 1.3  # time with views, labeling and evaluation, relative to the training passes
_LEAST_STEPS = 20


class FromScratch(NamedTuple):
    """A recipe, its lengths, and the mean and the standard deviation of the images."""

    recipe: Recipe
    lengths: Lengths
    mean: str
    std: str


def from_scratch(given: Given) -> FromScratch:
    """The recipe for images of this size, as long as suits their number, or as `minutes` allow."""
    plan = recipe(min(given.manifest.image_size), given.machine.device)
    batch_size = given.batch_size(plan.batch_size)
    teacher_steps = _clamp(60 * given.counts["labeled"] // batch_size, plan.teacher_steps)
    student_steps = _clamp(20 * given.counts["unlabeled"] // (batch_size * plan.ratio), plan.student_steps)
    num_rounds = (2 if given.on_cpu else 3) if given.has_rounds else 1
    images = given.some_images(plan.image_size, _NUM_IMAGES)
    per_step = batch_size * (1 + plan.ratio)
    speed = given.processes * training_speed(
        Network(plan.model, plan.model_args, given.num_classes),
        images[: 32 if given.on_cpu else per_step],
        changed(
            given.machine, precision=plan.precision_on(given.machine), threads=plan.threads or given.machine.threads
        ),
    )
    of_student = num_rounds * batch_size * (1 + plan.ratio * given.asks.passes) + per_step  # with that of the control
    of_teacher = batch_size if given.has_rounds else 0

    def seconds() -> float:
        return (teacher_steps * of_teacher + student_steps * of_student) / speed * _OVERHEAD

    if given.minutes is not None:
        factor = 60 * given.minutes / seconds()
        teacher_steps, student_steps = (max(int(factor * n), _LEAST_STEPS) for n in (teacher_steps, student_steps))
    lengths = Lengths(batch_size, teacher_steps, student_steps, num_rounds, seconds(), speed)
    return FromScratch(plan, lengths, *_mean_and_std(images))


def _mean_and_std(images: U8Array) -> tuple[str, str]:
    pixels = images.reshape(-1, 3) / 255
    return _numbers(pixels.mean(0)), _numbers(pixels.std(0).clip(0.01))  # because a channel may be constant


def _numbers(values: F64Array) -> str:
    return f"[{', '.join(f'{value:.3f}' for value in values)}]"


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
