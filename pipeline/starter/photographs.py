"""The starting config for photographs: a pretrained encoder, a probe on its features, and a gentle fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from pipeline.config import Precision, changed
from pipeline.models.pretrained import Pretrained, find_pretrained
from pipeline.starter.given import Given, Lengths
from pipeline.starter.presets import finetuning_preset
from pipeline.starter.recipe import Recipe
from pipeline.starter.speed import Network, prediction_speed, reading_speed, training_speed

ENCODERS = (
    "timm:tf_efficientnet_lite0.in1k",
    "timm:convnext_nano.in12k_ft_in1k",
    "timm:convnext_tiny.in12k_ft_in1k",
    "timm:convnext_base.fb_in22k_ft_in1k",
)
"""What is proposed, the cheapest first: 0.4, 2.5, 4.5 and 15 billion multiplications per image. All are networks that
take any size, have a free licence, and come from timm without an account."""
MINUTES = 30
"""How long a run may take, if nothing else is asked for."""
EVALUATIONS = 10
_BATCH_SIZE, _RATIO = 32, 3
_OVERHEAD = 1.1  # time with views, checkpoints and the start of processes, relative to reading and passes
_MEASURED, _NUM_READ = 8, 32  # images of a batch that is measured on a CPU, and of those that are read
_LEAST_STEPS, _MOST_EPOCHS = 50, 30
_ENOUGH_STEPS = 1000
"""A more costly encoder is proposed if it can take so many steps, too."""
_COSTLIER = 4
"""About the factor in time from one of ENCODERS to the next; none is measured that cannot be proposed."""


@dataclass(frozen=True)
class FineTuning:
    """An encoder, how it is fine-tuned, and for how long."""

    encoder: Pretrained
    recipe: Recipe
    lengths: Lengths
    num_parameters: int


def fine_tuning(given: Given, encoder: str | None) -> FineTuning:
    """The fine-tuning of an encoder that `minutes` allow; without a name, of the largest one that has enough steps.

    Raises:
        UserError: there is no such encoder.
    """
    if encoder is not None:
        return _sized(given, find_pretrained(encoder))
    found = _sized(given, find_pretrained(ENCODERS[0]))
    for name in ENCODERS[1:]:
        if _possible_steps(given, found) < _COSTLIER * _ENOUGH_STEPS:
            break
        larger = _sized(given, find_pretrained(name))
        if _possible_steps(given, larger) < _ENOUGH_STEPS:
            break
        found = larger
    return found


def _sized(given: Given, encoder: Pretrained) -> FineTuning:
    """The fine-tuning of an encoder, with its time: a pass over all images, the evaluations, student and control."""
    network = encoder.build()
    preset = dict(finetuning_preset(network))
    optimizer = preset.pop("optimizer")
    if not given.has_rounds:
        preset["head_lr"] = 10.0  # which begins at random, where there is no probe
    plan = Recipe(
        model=encoder.model,
        model_args=encoder.model_args,
        image_size=_smaller(encoder),
        batch_size=_BATCH_SIZE,
        ratio=_RATIO,
        teacher_steps=(_LEAST_STEPS, _LEAST_STEPS),
        student_steps=(_LEAST_STEPS, _LEAST_STEPS),
        lr=optimizer["lr"],
        lr_batch_size=optimizer.get("lr_batch_size", 256),
        weight_decay=f"{optimizer['weight_decay']:.7f}".rstrip("0"),
        optimizer=optimizer["name"],
        weak="{crop: resized, min_area: 0.35, flip: true}",
        strong="{num_ops: 2, magnitude: 5, cutout: 0}",
        dropout=0.0,
        stochastic_depth=0.0,
        adaptation=preset,
    )
    batch_size = given.batch_size(plan.batch_size)
    per_step = batch_size * (1 + plan.ratio)
    measured = _MEASURED if given.on_cpu else per_step
    of = Network(encoder.model, encoder.model_args, given.num_classes)
    images = given.some_images(plan.image_size, measured)
    # Depthwise convolutions train slower in bf16 than in fp32 on CPUs (9.4 against 12.6 images/s per AMX core, Lite0).
    precisions: set[Precision] = {given.machine.precision, "fp32"} if given.on_cpu else {given.machine.precision}
    machines = [changed(given.machine, precision=precision) for precision in sorted(precisions)]
    speeds = [given.processes * training_speed(of, images, machine) for machine in machines]
    training, machine = max(zip(speeds, machines, strict=True), key=lambda pair: pair[0])
    if machine != given.machine:
        plan = replace(plan, precision="fp32")
    prediction = prediction_speed(of, given.some_images(encoder.image_size, measured), machine)
    num_seen = sum(given.counts.values()) + 2 * (EVALUATIONS * given.counts["val"] + given.counts.get("test", 0))
    reading = reading_speed(partial(given.some_images, plan.image_size, _NUM_READ), machine)
    seen = num_seen * _with_reading(given, prediction, reading)
    of_student = batch_size * (1 + plan.ratio * given.asks.passes)
    of_step = (of_student + per_step) * _with_reading(given, training, reading)  # with that of the control
    minutes = MINUTES if given.minutes is None else given.minutes
    most = max(500, _MOST_EPOCHS * given.counts["unlabeled"] // (batch_size * plan.ratio))
    steps = min(max(int((60 * minutes - seen) / of_step), _LEAST_STEPS), most)
    lengths = Lengths(batch_size, steps, steps, 1, seen + steps * of_step, training)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return FineTuning(encoder, plan, lengths, parameters)


def _with_reading(given: Given, passes: float, reading: float) -> float:
    """The seconds of an image at these speeds: a CPU makes passes and reads with the same cores, a GPU meanwhile."""
    each = 1 / passes + 1 / reading if given.on_cpu else max(1 / passes, 1 / reading)
    return each * _OVERHEAD


def _possible_steps(given: Given, found: FineTuning) -> float:
    """The steps that the minutes allow, whatever the number of images."""
    minutes = MINUTES if given.minutes is None else given.minutes
    return found.lengths.student_steps * 60 * minutes / found.lengths.seconds


def _smaller(encoder: Pretrained) -> int:
    """The side of the images in the fine-tuning: 6/7 of that of the features, where the network takes any, since each
    step costs a quarter less."""
    if encoder.has_fixed_size or encoder.image_size < 160:
        return encoder.image_size
    return encoder.image_size * 6 // 7 // 32 * 32
