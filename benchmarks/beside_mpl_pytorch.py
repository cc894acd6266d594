"""Our step beside that of MPL-pytorch (kekmodel), which is in a clone of your own.

    git clone https://github.com/kekmodel/MPL-pytorch
    python benchmarks/beside_mpl_pytorch.py MPL-pytorch [--labeled 64] [--unlabeled 192] [--repeats 3] [--threads 2]

Theirs is their own `train_loop` in fp32 and NCHW, as published, with loaders that return resident random images; ours
is `meta_step` on such images. Same network (WRN-28-2), same numbers of images, in turns in one process; the figure is
the ratio of median times.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from bench_meta import ours, random_batch, synchronize, timed
from torch import nn

import pipeline.models  # noqa: F401  (cures torchvision beside a torch without CUDA, before theirs imports it)
from pipeline.config import Runtime, changed
from pipeline.stages.machine import resolve

THEIRS = "MPL-pytorch, fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clone", type=Path)
    parser.add_argument("--labeled", type=int, default=64)
    parser.add_argument("--unlabeled", type=int, default=192)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    runtime = resolve(Runtime(threads=args.threads))
    torch.set_num_threads(runtime.threads)
    device = torch.device(runtime.device)
    ways = {THEIRS: theirs(args.clone, args.labeled, args.unlabeled, args.steps, device)}
    batch = random_batch(args.labeled, args.unlabeled, device)
    for precision in sorted({"fp32", runtime.precision}):
        AcceleratorState._reset_state(True)
        step = ours("wide_resnet28_2", batch, changed(runtime, precision=precision), "exact", joint=True)
        step()
        ways[f"selftrain, exact, {precision}"] = partial(timed, step, args.steps, device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            times[name].append(way())
            print(f"{name:24} {1000 * times[name][-1]:8.1f} ms per step", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratio = medians[THEIRS] / median
        print(f"{name:24} {1000 * median:8.1f} ms per step, {ratio:.2f} times as fast")


class Done(Exception):
    """All steps were taken; nothing but an error ends their loop before its evaluation."""


class Resident:
    """A loader of one batch, which notes when it was asked for it: once per step."""

    def __init__(self, batch: Any, steps: int, device: torch.device) -> None:
        self.batch, self.steps, self.device, self.asked = batch, steps, device, list[float]()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        synchronize(self.device)
        self.asked.append(time.perf_counter())
        if len(self.asked) > self.steps:
            raise Done
        return self.batch


def theirs(clone: Path, num_labeled: int, num_unlabeled: int, steps: int, device: torch.device) -> Callable[[], float]:
    """Seconds per step of their `train_loop`."""
    sys.path.insert(0, str(clone))
    for name in ("wandb", "torch.utils.tensorboard"):  # which they import and the loop does not need
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["torch.utils.tensorboard"].SummaryWriter = object  # type: ignore[attr-defined]
    their_main, their_models = importlib.import_module("main"), importlib.import_module("models")

    def network() -> nn.Module:
        model: nn.Module = their_models.WideResNet(10, depth=28, widen_factor=2, dropout=0, dense_dropout=0.2)
        return model.to(device)

    teacher, student = network(), network()
    average = their_models.ModelEMA(student, 0.995)
    optimizers = [torch.optim.SGD(m.parameters(), 0.05, 0.9, nesterov=True) for m in (teacher, student)]
    schedules = [their_main.get_cosine_schedule_with_warmup(o, 0, 10**6) for o in optimizers]
    scalers = [torch.amp.GradScaler(device.type, enabled=False) for _ in range(2)]
    images = [torch.randn(n, 3, 32, 32, device=device) for n in (num_labeled, num_unlabeled, num_unlabeled)]
    labels = [torch.randint(0, 10, (n,), device=device) for n in (num_labeled, num_unlabeled)]
    settings = SimpleNamespace(
        dataset="cifar10",
        num_labeled=4000,
        start_step=0,
        total_steps=steps + 1,
        eval_step=10**9,
        world_size=1,
        local_rank=-1,
        device=device,
        amp=False,
        temperature=0.7,
        threshold=0.6,
        lambda_u=8,
        uda_steps=5000,
        grad_clip=0.0,
        ema=0.995,
        writer=SimpleNamespace(add_scalar=lambda *_: None),
    )

    def seconds() -> float:
        labeled = Resident((images[0], labels[0]), steps, device)
        unlabeled = Resident(((images[1], images[2]), labels[1]), steps + 1, device)
        models = (teacher, student, average, nn.CrossEntropyLoss(label_smoothing=0.15))
        with suppress(Done):
            their_main.train_loop(settings, labeled, unlabeled, None, None, *models, *optimizers, *schedules, *scalers)
        return (labeled.asked[steps] - labeled.asked[0]) / steps

    return seconds


if __name__ == "__main__":
    main()
