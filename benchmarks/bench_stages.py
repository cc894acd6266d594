"""Stages against the bare computation inside them: how much of the machine goes into forward and backward passes.

    python benchmarks/bench_stages.py [--model resnet9] [--steps 60] [--repeats 5] [--threads 2]

Student training: the real stage (shards, order, views, targets, metrics, checkpoints) against a bare loop of forward,
backward, clip, optimizer and EMA of the same model on one resident batch, in the same precision and threads. Labeling:
the real stage against the forward pass alone. Both run in turns in one process, so that a noisy machine hits both; the
figure is the ratio of the medians. Images are random: their content does not matter here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.config import Config, Runtime, changed, parse
from pipeline.models import build
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.stages.jobs import LabelJob, SelectJob, TrainJob
from pipeline.stages.machine import resolve
from pipeline.stages.preamble import run_stage
from pipeline.train.ema import Ema


def make_data(folder: Path, num_images: int) -> Path:
    """Random 32x32 images of two classes, packed."""
    draws = np.random.default_rng(0)
    for index in range(num_images):
        path = folder / "images" / f"class{index % 2}" / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), np.uint8)).save(path, compress_level=1)
    pack(folder / "images", folder / "packed", carve=Carve(num_labeled=1000, val_fraction=0.02), shard_size=2000)
    return folder / "packed"


def make_config(root: Path, args: argparse.Namespace, folder: Path) -> Config:
    training = {
        "model": args.model,
        "steps": args.steps,
        "evaluations": 1,
        "clip_norm": 5.0,
        "strong": {"num_ops": 2, "magnitude": 6, "cutout": 16},
    }
    raw = {
        "data": {"root": str(root), "cache_dir": str(folder / "cache"), "cache": "always"},
        "teacher": {**training, "steps": 2, "batch_size": 32},
        "student": {**training, "batch_size": 64, "unlabeled_ratio": 3},
        "select": {"balance": "off", "allow_empty_classes": True},
        "runtime": {"threads": args.threads, "precision": args.precision, "log_every": 20},
    }
    config = parse(Config, raw, "benchmark")
    return changed(config, runtime=resolve(config.runtime))


def images_per_s(stage: Path) -> float:
    lines = [json.loads(line) for line in (stage / "timing.jsonl").read_text().splitlines()]
    lines = lines[1:] if len(lines) > 1 else lines  # the first holds the warm-up
    return sum(line["images"] for line in lines) / sum(line["seconds"] for line in lines)


def run_training(config: Config, out: Path, selection: Path | None = None) -> None:
    """A student of the selection or, without one, a teacher."""
    if selection is None:
        run_stage(TrainJob.of(config, out, "teacher", 0, config.teacher))
    else:
        run_stage(TrainJob.of(config, out, "student", 1, config.student, selection=selection))


def bare_training(config: Config, device: torch.device) -> Callable[[], float]:
    """Images/s of `steps` steps on a resident batch."""
    training = config.student
    size = training.batch_size + training.unlabeled_batch_size
    model = build(training.model, 2).to(device=device, memory_format=torch.channels_last).train()
    ema = Ema(model, 0.999)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 2, (size,), device=device)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(training.steps):
            with autocast(config.runtime, device):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update()
        synchronize(device)
        return training.steps * size / (time.perf_counter() - started)

    return run


def bare_labeling(config: Config, device: torch.device, num_batches: int) -> Callable[[], float]:
    """Images/s of forward passes on a resident batch."""
    model = build(config.student.model, 2).to(device=device, memory_format=torch.channels_last).eval()
    images = torch.randn(config.label.batch_size, 3, 32, 32, device=device).contiguous(
        memory_format=torch.channels_last
    )

    def run() -> float:
        started = time.perf_counter()
        with torch.inference_mode(), autocast(config.runtime, device):
            for _ in range(num_batches):
                model(images)
        synchronize(device)
        return num_batches * len(images) / (time.perf_counter() - started)

    return run


def autocast(runtime: Runtime, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(name: str, ours: list[float], bare: list[float]) -> None:
    a, b = statistics.median(ours), statistics.median(bare)
    ratios = sorted(x / y for x, y in zip(ours, bare, strict=True))
    print(
        f"{name:10} ours {a:8.0f}/s   bare {b:8.0f}/s   ratio {a / b:.3f} (pairs {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet9")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
        folder = Path(name)
        config = make_config(make_data(folder, 10_000), args, folder)
        device = torch.device(config.runtime.device)
        torch.set_num_threads(config.runtime.threads)
        print(f"{args.model}, {config.runtime.model_dump(include={'device', 'precision', 'threads'})}")
        run_training(config, folder / "teacher")
        pairs: dict[str, tuple[list[float], list[float]]] = {"training": ([], []), "labeling": ([], [])}
        bare_train, bare_label = bare_training(config, device), bare_labeling(config, device, 16)
        bare_train()
        for repeat in range(args.repeats):
            labels, selection, student = (folder / f"{repeat}" / name for name in ("labels", "selection", "student"))
            run_stage(LabelJob.of(config, labels, 1, [folder / "teacher"]))
            pairs["labeling"][0].append(images_per_s(labels))
            pairs["labeling"][1].append(bare_label())
            with contextlib.redirect_stdout(io.StringIO()):  # its summary
                run_stage(SelectJob.of(config, selection, 1, labels))
            run_training(config, student, selection)
            pairs["training"][0].append(images_per_s(student))
            pairs["training"][1].append(bare_train())
        for kind, (ours, bare) in pairs.items():
            report(kind, ours, bare)


if __name__ == "__main__":
    main()
