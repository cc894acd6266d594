"""Photographs: random crops for a training beside the loaders of torchvision and webdataset, and passes of a network.

    python benchmarks/bench_photographs.py IMAGES [--size 224] [--workers 1] [--repeats 5] [--only embedding]

IMAGES is a folder of JPEGs in one folder per class, whose shorter side is about 256. It is packed here; all three
loaders read these files, and make the same of them: batches of random resized crops, mirrored at random, normalized,
float32. They take turns in one process. A core's work is CPU time, that of worker processes included, because the wall
clock of a busy machine says little. Labeling and embedding are the real stages, without a cache, against forward passes
on a resident batch, by a model with random weights: as it is, and with its BatchNorm folded, as the stages have it. All
of it runs in the environment of a stage.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import pipeline.models  # noqa: F401  (cures torchvision beside a torch without CUDA, before it is imported)
from pipeline.config import Config, Probe, Start, changed, parse
from pipeline.models import build
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.format import ModelInfo, save_model
from pipeline.models.memory_format import channels_last
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split
from pipeline.stages.environment import KEEP_FREED_MEMORY
from pipeline.stages.jobs import EmbedJob, Job, LabelJob, TrainJob
from pipeline.stages.machine import resolve
from pipeline.stages.preamble import run_stage
from pipeline.stages.ranks import Ranks
from pipeline.train.batches import to_device
from pipeline.train.setup import Setup

from torchvision import datasets, transforms  # isort: skip

MIN_AREA = 0.25
SHARD_SIZE = 300
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
T = TypeVar("T")


class Time(NamedTuple):
    """Seconds of one pass."""

    cpu: float
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="of each loader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--threads", type=int, default=0, help="of the labeling")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=("loading", "labeling", "embedding"))
    args = parser.parse_args()
    in_environment_of_a_stage()
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as name:
        folder = Path(name)
        pack(args.images, folder / "packed", split="labeled", shard_size=SHARD_SIZE)
        pack(args.images, folder / "unlabeled", split="unlabeled", shard_size=SHARD_SIZE)
        config = make_config(args, folder)
        if args.only in (None, "loading"):
            loading(config, args)
        if args.only in (None, "labeling", "embedding"):
            passes(config, args, folder)


def in_environment_of_a_stage() -> None:
    """Begin anew with the variables that stages have on a CPU, by which glibc keeps what is freed."""
    if missing := {name: value for name, value in KEEP_FREED_MEMORY.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **missing})


def make_config(args: argparse.Namespace, folder: Path) -> Config:
    training = {
        "model": args.model,
        "image_size": args.size,
        "mean": MEAN,
        "std": STD,
        "batch_size": args.batch,
        "weak": {"crop": "resized", "min_area": MIN_AREA},
        "strong": {"num_ops": 0},
        "noise_labeled": False,
    }
    data = {
        "root": str(folder / "packed"),
        "unlabeled": [str(folder / "unlabeled")],
        "cache_dir": str(folder / "cache"),
        "cache": "never",
    }
    runtime = {"threads": args.threads, "precision": args.precision, "device": "cpu"}
    raw = {"data": data, "teacher": training, "runtime": runtime, "label": {"batch_size": args.batch}}
    config = parse(Config, raw, "benchmark")
    return changed(config, runtime=resolve(config.runtime))


# ------------------------------------------------------------------------------------------------------------- loading


def loading(config: Config, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    loaders = {
        "selftrain": of_selftrain(config, args),
        "selftrain, uint8": of_selftrain(config, args, on_host=False),
        "torchvision": of_torchvision(args),
        "webdataset": of_webdataset(config, args),
    }
    times: dict[str, list[Time]] = {name: [] for name in loaders}
    for repeat in range(args.repeats + 1):
        for name, load in loaders.items():
            took, num_images = timed(lambda load=load: count(load(), args))  # type: ignore[misc]
            if repeat:  # the first one warms up
                times[name].append(Time(took.cpu / num_images, took.wall / num_images))
    for name, each in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*each, strict=True))
        ratios = sorted(one.cpu / ours.cpu for one, ours in zip(each, times["selftrain"], strict=True))
        print(
            f"{name:16} {1 / cpu:7.0f} images/s of a core's work, {1 / wall:7.0f} by the clock; selftrain does "
            f"{statistics.median(ratios):.2f} times as many per core (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def count(batches: Iterator[Tensor], args: argparse.Namespace) -> int:
    total = 0
    for views in batches:
        assert args.size in views.shape[2:]
        total += len(views)
    return total


def of_selftrain(config: Config, args: argparse.Namespace, on_host: bool = True) -> Callable[[], Iterator[Tensor]]:
    """The training's own batches and weak views or, where a GPU would make the views, the crops that go to it."""
    config = changed(config, data=changed(config.data, decode_workers=args.workers))
    setup = Setup(TrainJob.of(config, Path(), "teacher", 0, config.teacher), Ranks(), {})
    views, batches, num_steps = setup.views(), setup.batches(), len(setup.labeled) // args.batch
    epoch = iter(range(10**6))

    def load() -> Iterator[Tensor]:
        first = next(epoch) * num_steps
        for batch in batches.from_step(first, first + num_steps):
            (images,) = to_device(torch.device("cpu"), batch.images)
            yield views.weak(images, batch.positions) if on_host else images

    return load


def transform(args: argparse.Namespace) -> Callable[[Any], Tensor]:
    """The views by torchvision, with the filter that we have by default."""
    filters = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(args.size, scale=(MIN_AREA, 1), interpolation=filters),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def of_torchvision(args: argparse.Namespace) -> Callable[[], Iterator[Tensor]]:
    dataset = datasets.ImageFolder(str(args.images), transform(args))

    def load() -> Iterator[Tensor]:
        for images, _ in DataLoader(dataset, args.batch, shuffle=True, drop_last=True, num_workers=args.workers):
            yield images

    return load


def of_webdataset(config: Config, args: argparse.Namespace) -> Callable[[], Iterator[Tensor]]:
    import webdataset

    tars = [str(shard.path) for shard in open_split(config.data, "labeled").shards]

    def load() -> Iterator[Tensor]:
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars))
        samples = samples.shuffle(1000).decode("pil").to_tuple("jpg", "cls").map_tuple(transform(args))
        loader = webdataset.WebLoader(samples.batched(args.batch, partial=False), None, num_workers=args.workers)
        for images, _ in loader:
            yield images

    return load


# ------------------------------------------------------------------------------------------- labeling and embedding


def passes(config: Config, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(config.runtime.threads)
    unlabeled, classes = open_split(config.data, "unlabeled"), open_split(config.data, "labeled").classes
    model = build(args.model, len(classes))
    crop: dict[str, Any] = {"input_size": (3, args.size, args.size), "mean": MEAN, "std": STD, "crop_pct": 0.875}
    info = ModelInfo(architecture=args.model, model_args={}, classes=classes, **crop, metrics={}, lineage={})
    (folder / "teacher").mkdir()
    save_model(folder / "teacher" / "model.safetensors", model.state_dict(), info)
    start = Start(model=str(folder / "teacher"), mode="init")
    encoder = changed(config.teacher, start=start, probe=Probe(batch_size=args.batch), crop_pct=0.875)
    jobs: dict[str, Callable[[Path], Job]] = {
        "labeling": lambda out: LabelJob.of(config, out / "labels", 1, [folder / "teacher"]),
        "embedding": lambda out: EmbedJob.of_run(config, out=out / "features", training=encoder, splits=("unlabeled",)),
    }
    jobs = {name: job for name, job in jobs.items() if args.only in (None, name)}
    model = channels_last(model, torch.device("cpu")).eval()
    forwards = {
        "forward-only": bare_passes(config, model, args, len(unlabeled)),
        "forward-only with folded BatchNorm": bare_passes(config, model, args, len(unlabeled), folded=True),
    }
    for forward in forwards.values():
        forward()  # the first one warms up
    times: dict[str, list[dict[str, Time]]] = {name: [] for name in jobs}
    for repeat in range(args.repeats):
        for name, job in jobs.items():
            out = folder / f"{name}-{repeat}"
            took = {"ours": timed(lambda job=job, out=out: run_stage(job(out)))[0]}  # type: ignore[misc]
            took |= {each: timed(forward)[0] for each, forward in forwards.items()}
            times[name].append(took)
            print(f"{name} of {len(unlabeled)}: {took}", flush=True)
    for name, each in times.items():
        for against, kind in itertools.product(forwards, Time._fields):
            ratios = sorted(getattr(took[against], kind) / getattr(took["ours"], kind) for took in each)
            print(f"{name} does {statistics.median(ratios):.3f} of {against} by {kind} time (pairs {ratios})")


def bare_passes(
    config: Config, model: torch.nn.Module, args: argparse.Namespace, num: int, *, folded: bool = False
) -> Callable[[], None]:
    """Forward passes of as many images on a resident batch."""
    images = torch.randn(args.batch, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
    bf16 = config.runtime.precision == "bf16"
    folding = FoldedBatchNorm(model, images[:1]) if folded else nullcontext()

    def run() -> None:
        with torch.inference_mode(), folding, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for start in range(0, num, args.batch):
                model(images[: num - start])

    return run


def timed(work: Callable[[], T]) -> tuple[Time, T]:
    """The time of a call, with that of the processes that it started and awaited, and what it returned."""
    before, started = cpu_s(), time.perf_counter()
    result = work()
    return Time(cpu_s() - before, time.perf_counter() - started), result


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    main()
