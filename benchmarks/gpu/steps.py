"""The student's step and the labeling beside the bare loop: the same model in the same precision, on resident images.

Student: `PseudoLabelLearner.update` on real batches, with reading, views, targets, metrics and average, against
forward, loss, backward and SGD of one batch that lies on the device. Labeling: the real stage against forward passes of
one batch. Floating-point operations are those of convolutions and matrix products in the bare loop, as
torch.utils.flop_counter counts them (a multiply-add is two).
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import signal
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.record import Clock, Record
from benchmarks.gpu.turns import WARM_UP, Times, in_turns, timed
from pipeline.config import Config, Runtime, parse
from pipeline.methods.noisy_student.learner import PseudoLabelLearner
from pipeline.models import build
from pipeline.stages.jobs import Job, LabelJob, SelectJob, TrainJob
from pipeline.stages.preamble import run_stage
from pipeline.stages.ranks import Ranks
from pipeline.train.setup import Setup

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LABEL_PASSES = 3


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    size: int
    batches: tuple[tuple[int, int], ...]
    """Labeled and unlabeled images of a step."""
    label_batch: int


CASES = (
    Case("resnet9", 32, ((64, 192), (512, 1536)), 2048),
    Case("wide_resnet28_2", 32, ((64, 192), (512, 1536)), 2048),
    Case("resnet50", 224, ((64, 192),), 512),
)
TINY_CASES = (
    Case("resnet9", 32, ((4, 12),), 32),
    Case("wide_resnet16_2", 32, ((4, 12),), 32),
    Case("resnet18", 56, ((2, 6),), 8),
)


def measure(record: Record, clock: Clock, case: Case, root: Path, runtime: Runtime, folder: Path) -> None:
    """Everything about one case, in about the time of the clock."""
    config = _config(case, root, runtime, folder)
    run_here(TrainJob.of(config, folder / "teacher", "teacher", 0, config.teacher))
    device = torch.device(runtime.device)
    measure_labeling(record, case, config, folder, device)
    selection = folder / "selection"
    with contextlib.redirect_stdout(io.StringIO()):  # its summary
        run_here(SelectJob.of(config, selection, 1, folder / "labels-0"))
    for number, (labeled, unlabeled) in enumerate(case.batches):
        share = clock.share(1 / (len(case.batches) - number))
        measure_step(record, share, case, config, selection, (labeled, unlabeled), device)


def run_here(job: Job) -> None:
    """Run a stage in this process, which goes on to obey its signals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run_stage(job)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _config(case: Case, root: Path, runtime: Runtime, folder: Path) -> Config:
    training = {"model": case.model, "image_size": case.size, "evaluations": 1}
    training |= {"weak": {"crop": "resized"} if case.size > 32 else {}}
    strong = {"num_ops": 2, "magnitude": 6, "cutout": case.size // 2}
    raw = {
        "data": {"root": str(root), "cache_dir": str(folder / "cache"), "cache": "always"},
        "teacher": {**training, "steps": 2, "batch_size": case.batches[0][0]},
        "label": {"batch_size": case.label_batch},
        "select": {"balance": "off", "allow_empty_classes": True},
        "student": {**training, "strong": strong, "unlabeled_ratio": 3},
        "runtime": runtime.model_dump(),
    }
    return parse(Config, raw, "benchmark")


# --------------------------------------------------------------------------------------------------------- the student


def measure_step(
    record: Record,
    clock: Clock,
    case: Case,
    config: Config,
    selection: Path,
    batch: tuple[int, int],
    device: torch.device,
) -> None:
    """A step with so many labeled and unlabeled images."""
    gc.collect()  # of the case before
    values = {**config.student.model_dump(), "batch_size": batch[0], "unlabeled_ratio": batch[1] / batch[0]}
    training = type(config.student).model_validate(values)
    job = TrainJob.of(config, selection.parent / "student", "student", 1, training, selection=selection)
    learner = PseudoLabelLearner(Setup(job, Ranks(), {}))
    learner.network.train_mode()
    batches = learner.batches.from_step(0, 10**9)
    bare = BareTraining(case, sum(batch), config.runtime, device)
    with FlopCounterMode(display=False) as counter:
        bare.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ways = {"selftrain": lambda: learner.update(0, [next(batches)]), "bare": bare.step}
    times = in_turns(ways, max(clock.left, 1.0), device)
    ours, theirs, images = times["selftrain"], times["bare"], sum(batch)
    figures = {
        "model": case.model,
        "size": case.size,
        "batch": batch,
        "tflops_per_step": counter.get_total_flops() / 1e12,
        "selftrain": _figures(ours, images),
        "bare": _figures(theirs, images),
        "ratio": round(theirs.seconds / ours.seconds, 4),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }
    rate = counter.get_total_flops() / ours.seconds / 1e12
    record.add(
        "student step",
        f"student step, {case.model} at {case.size}, {batch[0]} + {batch[1]}: {1000 * ours.seconds:.2f} ms, bare "
        f"{1000 * theirs.seconds:.2f} ms, speed {theirs.seconds / ours.seconds:.3f} of bare; the host is busy for "
        f"{1000 * ours.host:.2f} ms, bare {1000 * theirs.host:.2f} ms; {images / ours.seconds:,.0f} images/s, "
        f"{rate:.1f} TFLOP/s",
        **figures,
    )


def _figures(times: Times, images: int) -> dict[str, object]:
    turns = sorted(round(1000 * seconds, 4) for seconds in times.turns)
    return {
        "ms": round(1000 * times.seconds, 4),
        "lowest_ms": turns[0],
        "highest_ms": turns[-1],
        "turns": len(turns),
        "host_ms": round(1000 * times.host, 4),
        "images_per_s": round(images / times.seconds, 1),
    }


class BareTraining:
    """Forward, loss, backward and SGD of one resident batch."""

    def __init__(self, case: Case, num_images: int, runtime: Runtime, device: torch.device) -> None:
        self.model = resident_model(case, device).train()
        self.autocast = partial(autocast, runtime, device)
        self.images = resident_images(case, num_images, device)
        self.labels = torch.randint(0, 2, (num_images,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)

    def step(self) -> None:
        """One update."""
        with self.autocast():
            logits = self.model(self.images)
        F.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------------------------------------------------- the teacher


def measure_labeling(record: Record, case: Case, config: Config, folder: Path, device: torch.device) -> None:
    """The label stage, some times over, in turns with forward passes."""
    model, images = resident_model(case, device).eval(), resident_images(case, case.label_batch, device)

    @torch.inference_mode()
    def forward() -> Tensor:
        with autocast(config.runtime, device):
            logits: Tensor = model(images)
        return logits

    for _ in range(WARM_UP[device.type]):
        forward()
    ours, bare = [], []
    for number in range(LABEL_PASSES):
        labels = folder / f"labels-{number}"
        run_here(LabelJob.of(config, labels, 1, [folder / "teacher"]))
        ours.append(_images_per_s(labels))
        bare.append(case.label_batch / timed(forward, 8 if device.type == "cuda" else 1, device))
    mine, theirs = statistics.median(ours), statistics.median(bare)
    record.add(
        "labeling",
        f"labeling, {case.model} at {case.size}, batches of {case.label_batch}: {mine:,.0f} images/s, bare "
        f"{theirs:,.0f}, speed {mine / theirs:.3f} of bare",
        model=case.model,
        size=case.size,
        batch=case.label_batch,
        images_per_s=ours,
        bare_images_per_s=bare,
        ratio=round(mine / theirs, 4),
    )


def _images_per_s(stage: Path) -> float:
    """Of the shards after the first, which takes the warm-up."""
    lines = [json.loads(line) for line in (stage / "timing.jsonl").read_text().splitlines()][1:]
    return float(sum(line["images"] for line in lines) / sum(line["seconds"] for line in lines))


# -------------------------------------------------------------------------------------------------------- the bare loop


def resident_model(case: Case, device: torch.device) -> nn.Module:
    """The model with random weights."""
    model: nn.Module = build(case.model, 10).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def resident_images(case: Case, num: int, device: torch.device) -> Tensor:
    """Normalized images, which are noise."""
    images = torch.randn(num, 3, case.size, case.size, device=device)
    return images.contiguous(memory_format=torch.channels_last)


def autocast(runtime: Runtime, device: torch.device) -> torch.autocast:
    """The run's precision."""
    half = HALF.get(runtime.precision)
    return torch.autocast(device.type, half, enabled=half is not None)
