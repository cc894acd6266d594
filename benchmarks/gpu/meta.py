"""The step of Meta Pseudo Labels beside the compute that nobody can leave out, as benchmarks/bench_meta.py has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.bench_meta import bare, ours, random_batch
from benchmarks.gpu.record import Clock, Record
from benchmarks.gpu.turns import in_turns
from pipeline.config import Runtime

KINDS = ("exact", "cosine", "finite-difference", "off")


@dataclass(frozen=True)
class Case:
    """One model, and the labeled and unlabeled images of a step at 32 pixels."""

    model: str
    labeled: int
    unlabeled: int


CASES = (Case("resnet9", 64, 192), Case("resnet9", 512, 1536), Case("wide_resnet28_2", 512, 1536))
TINY_CASES = (Case("resnet9", 4, 12),)


def measure(record: Record, clock: Clock, case: Case, runtime: Runtime) -> None:
    """Every kind of feedback, on one resident batch."""
    device = torch.device(runtime.device)
    batch = random_batch(case.labeled, case.unlabeled, device)
    ways = {
        "unavoidable": bare(case.model, batch, runtime, joint=True),
        **{kind: ours(case.model, batch, runtime, kind, joint=True) for kind in KINDS},
    }
    times = in_turns(ways, max(clock.left, 1.0), device)
    least = times["unavoidable"].seconds
    shown = ", ".join(
        f"{name} {1000 * way.seconds:.2f} ms ({way.seconds / least:.3f}, host {1000 * way.host:.2f} ms)"
        for name, way in times.items()
    )
    record.add(
        "meta step",
        f"meta step, {case.model} at 32, {case.labeled} + {case.unlabeled}: {shown}",
        model=case.model,
        batch=(case.labeled, case.unlabeled),
        ms={name: round(1000 * way.seconds, 4) for name, way in times.items()},
        host_ms={name: round(1000 * way.host, 4) for name, way in times.items()},
        of_unavoidable={name: round(way.seconds / least, 4) for name, way in times.items()},
    )
