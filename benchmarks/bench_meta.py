"""A step of Meta Pseudo Labels against the compute that nobody can leave out.

    python benchmarks/bench_meta.py [--model resnet9] [--labeled 64] [--unlabeled 192] [--repeats 9] [--threads 2]

Unavoidable, on the same resident batch in the same precision: of the teacher, a forward and backward pass of labeled
images and both views (with --apart a forward pass of the weak views alone, and both passes of the others); of the
student, forward and backward passes of the strong views and of the labeled images; an update of each. Both run in
turns; the figure is the ratio of median times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Meta, NetworkSettings, Runtime, Uda
from pipeline.methods.meta.step import Baseline, MetaBatch, meta_step
from pipeline.models import build
from pipeline.stages.machine import resolve
from pipeline.stages.ranks import Ranks
from pipeline.train.network import Network, prepare
from pipeline.train.setup import make_accelerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet9")
    parser.add_argument("--labeled", type=int, default=64)
    parser.add_argument("--unlabeled", type=int, default=192)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--apart", action="store_true", help="pass weak views by themselves, without gradients")
    args = parser.parse_args()
    runtime = resolve(Runtime(threads=args.threads, precision=args.precision))
    torch.set_num_threads(runtime.threads)
    device = torch.device(runtime.device)
    batch = random_batch(args.labeled, args.unlabeled, device)
    ways = {
        "unavoidable": bare(args.model, batch, runtime, joint=not args.apart),
        **{
            kind: ours(args.model, batch, runtime, kind, joint=not args.apart)
            for kind in ("exact", "cosine", "finite-difference", "off")
        },
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in ways.values():
        step()
    for _ in range(args.repeats):
        for name, step in ways.items():
            times[name].append(timed(step, args.steps, device))
    print(f"{args.model}, {args.labeled} + {args.unlabeled} images, {runtime.device}, {runtime.precision}")
    least = statistics.median(times["unavoidable"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:18} {1000 * median:8.1f} ms per step   {median / least:.3f} of unavoidable")


def timed(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds per step."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / steps


def random_batch(num_labeled: int, num_unlabeled: int, device: torch.device) -> MetaBatch:
    def images(count: int) -> Tensor:
        return torch.randn(count, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)

    return MetaBatch(
        labeled=images(num_labeled),
        labels=torch.randint(0, 10, (num_labeled,), device=device),
        weak=images(num_unlabeled),
        strong=images(num_unlabeled),
        draws=torch.rand(num_unlabeled, device=device),
        stored=torch.empty(num_unlabeled, 0, device=device),
    )


def make_model(name: str, device: torch.device) -> nn.Module:
    model: nn.Module = build(name, 10).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train()


def ours(name: str, batch: MetaBatch, runtime: Runtime, kind: str, *, joint: bool) -> Callable[[], None]:
    accelerator, ranks = make_accelerator(runtime), Ranks()

    def network() -> Network:
        return prepare(make_model(name, accelerator.device), NetworkSettings(model=name), accelerator, ranks)

    teacher, student, baseline = network(), network(), Baseline(0.99)
    meta, uda = Meta.model_validate({"feedback": kind}), Uda(joint_batch=joint)

    def step() -> None:
        meta_step(teacher, student, batch, meta, uda, baseline, uda_weight=1.0, teacher_lr=0.01, student_lr=0.01)

    return step


def bare(name: str, batch: MetaBatch, runtime: Runtime, *, joint: bool) -> Callable[[], None]:
    device = batch.labeled.device
    teacher, student = make_model(name, device), make_model(name, device)
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, 0.9, nesterov=True) for m in (teacher, student)]
    seen = torch.cat([batch.labeled, batch.strong, *([batch.weak] if joint else [])])
    guesses = torch.randint(0, 10, (len(batch.strong),), device=device)

    def forward(model: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=runtime.precision == "bf16"):
            logits: Tensor = model(images)
        return logits.float()

    def step() -> None:
        if not joint:
            with torch.no_grad():
                forward(teacher, batch.weak)
        targets = torch.cat([batch.labels, guesses])
        F.cross_entropy(forward(teacher, seen)[: len(targets)], targets).backward()
        F.cross_entropy(forward(student, batch.strong), guesses).backward()
        F.cross_entropy(forward(student, batch.labeled), batch.labels).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
