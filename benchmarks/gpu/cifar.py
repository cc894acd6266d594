"""CIFAR-10 with 4,000 labels in the minutes that are left: accuracy against the time and the operations of training.

The recipe is a shipped one; its number of steps is what fits into the time, with warm-up and ramp in proportion. A
rehearsal with another learner measures speed and loads all kernels before the clock of the training starts, which
stands still while val is evaluated. Test is read once, at the end. Operations are those of convolutions and matrix
products in the steps, forward and backward, as torch.utils.flop_counter counts them (a multiply-add is two).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.record import Clock, Record
from benchmarks.gpu.turns import WARM_UP, synchronize
from pipeline.config import Config, Split, changed, load_config
from pipeline.evaluate.metrics import Metrics, compute_metrics
from pipeline.evaluate.predictor import Predictor, predict, reader_of
from pipeline.methods import METHODS
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup

EVALUATIONS = 12
MARGIN = 0.94
"""Of the time that is left, what training and evaluations are planned to take."""


@dataclass(frozen=True)
class Rehearsal:
    """What a training will take."""

    step_s: float
    evaluation_s: float
    tflops_per_step: float


def measure(record: Record, clock: Clock, recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train for the time of the clock."""
    config = load_config(recipe, overrides)
    expected = rehearse(config, folder)
    seconds = MARGIN * clock.left - (EVALUATIONS + 4) * expected.evaluation_s
    config = with_steps(config, max(round(seconds / expected.step_s), 2 * EVALUATIONS))
    record.add(
        "cifar10-4k",
        f"CIFAR-10 with 4,000 labels by {recipe.stem}: {config.student.steps} steps of {1000 * expected.step_s:.2f} ms "
        f"and {expected.tflops_per_step:.3f} TFLOP",
        steps=config.student.steps,
        rehearsed=vars(expected),
        student=config.student.model_dump(mode="json"),
    )
    learner = train(record, clock, config, expected, folder)
    test = judge(learner, config, "test")
    record.add(
        "cifar10-4k",
        f"test {100 * test.top1:.2f}% ({100 * test.interval[0]:.1f} to {100 * test.interval[1]:.1f})",
        test=test.to_json(),
    )


def rehearse(config: Config, folder: Path) -> Rehearsal:
    """Some steps and an evaluation of a learner that is thrown away."""
    learner = learner_of(config, folder)
    device, accumulation = learner.accelerator.device, config.student.accumulation
    num = WARM_UP[device.type]
    batches = learner.batches.from_step(0, config.student.steps)
    with FlopCounterMode(display=False) as counter:
        learner.update(0, islice(batches, accumulation))
    for _ in range(num):
        learner.update(0, islice(batches, accumulation))
    synchronize(device)
    started = time.monotonic()
    for _ in range(2 * num):
        learner.update(0, islice(batches, accumulation))
    synchronize(device)
    step_s = (time.monotonic() - started) / (2 * num)
    for split in ("test", "val"):  # whose images are decoded here
        Reader(open_split(config.data, split), config.student.image_size, config.data)
    judge(learner, config, "val")
    started = time.monotonic()
    judge(learner, config, "val")
    return Rehearsal(step_s, time.monotonic() - started, counter.get_total_flops() / 1e12)


def with_steps(config: Config, steps: int) -> Config:
    """The recipe in another number of steps."""
    student, share = config.student, steps / config.student.steps
    values = {"steps": steps, "warmup_steps": round(student.warmup_steps * share)}
    uda = changed(config.uda, ramp_steps=round(config.uda.ramp_steps * share))
    return changed(config, student=changed(student, **values), uda=uda)


def train(record: Record, clock: Clock, config: Config, expected: Rehearsal, folder: Path) -> Learner:
    """The training; it stops early where it is slower than it was rehearsed."""
    learner, steps = learner_of(config, folder), config.student.steps
    device, accumulation = learner.accelerator.device, config.student.accumulation
    evaluate_at = {steps * (k + 1) // EVALUATIONS for k in range(EVALUATIONS)}
    batches = learner.batches.from_step(0, steps)
    trained = 0.0
    started = time.monotonic()
    for step in range(steps):
        learner.update(step, islice(batches, accumulation))
        late = clock.left < 3 * expected.evaluation_s
        if step + 1 not in evaluate_at and not late:
            continue
        synchronize(device)
        trained += time.monotonic() - started
        _report(record, learner, config, step + 1, trained, expected)
        if late:
            record.add("cifar10-4k", f"no time is left after step {step + 1} of {steps}", cut_short=step + 1)
            break
        started = time.monotonic()
    return learner


def _report(record: Record, learner: Learner, config: Config, step: int, seconds: float, expected: Rehearsal) -> None:
    val = judge(learner, config, "val")
    pflops = step * expected.tflops_per_step / 1000
    record.add(
        "cifar10-4k",
        f"step {step:6d}  {seconds:7.1f} s of training  {pflops:9.3f} PFLOP  val {100 * val.top1:.2f}%  "
        f"nll {val.nll:.3f}",
        step=step,
        train_s=round(seconds, 2),
        pflops=pflops,
        val=val.to_json(),
        measured=learner.meter.take(),
        not_finite_at=learner.meter.bad_step(),
    )


def learner_of(config: Config, folder: Path) -> Learner:
    """The learner of the config's method, ready to take steps."""
    method = METHODS[config.method]
    whose = {"method": method.name, "learner": method.learner, "settings": method.settings(config)}
    job = TrainJob.of(config, folder, "student", 1, config.student, **whose)
    learner: Learner = load_object(job.learner)(Setup(job, Ranks(), {}))
    for network in learner.networks.values():
        network.train_mode()
    return learner


def judge(learner: Learner, config: Config, split: Split) -> Metrics:
    """Figures of the averaged weights."""
    data, network = open_split(config.data, split), learner.model
    assert network.info is not None
    predictor = Predictor(
        network.ema.model,
        network.info,
        device=learner.accelerator.device,
        precision=config.runtime.precision,
        flip=config.evaluate.flip,
    )
    reader = reader_of(network.info, data, config.data)
    return compute_metrics(predict(predictor, reader, len(data), config.evaluate.batch_size), data.labels)
