"""Ways to do the same work, timed in turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Step = Callable[[], object]
WARM_UP = {"cuda": 20, "cpu": 1}
"""Steps before anything is timed: kernels are loaded and chosen, memory is allocated."""
ROUNDS = 5
MIN_ROUNDS = 2


@dataclass(frozen=True)
class Times:
    """Of one way."""

    turns: tuple[float, ...]
    """Seconds per step, turn by turn."""
    host: float
    """Seconds for which one step keeps the host busy, while nothing is queued: no GPU, however fast, goes below."""

    @property
    def seconds(self) -> float:
        """Per step, the median of the turns."""
        return statistics.median(self.turns)


def in_turns(ways: Mapping[str, Step], seconds: float, device: torch.device) -> dict[str, Times]:
    """Time each way in about `seconds` together, after a warm-up that does not count."""
    for step in ways.values():
        for _ in range(WARM_UP[device.type]):
            step()
    turns: dict[str, list[float]] = {name: [] for name in ways}
    hosts = {name: _host_seconds(step, device) for name, step in ways.items()}
    alone = {name: timed(step, 3, device) if device.type == "cuda" else hosts[name] for name, step in ways.items()}
    steps = {name: max(1, round(seconds / len(ways) / ROUNDS / one)) for name, one in alone.items()}
    ends = time.monotonic() + seconds
    while len(next(iter(turns.values()))) < MIN_ROUNDS or time.monotonic() < ends:
        for name, step in ways.items():
            turns[name].append(timed(step, steps[name], device))
    return {name: Times(tuple(turns[name]), hosts[name]) for name in ways}


def timed(step: Step, steps: int, device: torch.device) -> float:
    """Seconds per step."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / steps


def _host_seconds(step: Step, device: torch.device) -> float:
    times = []
    for _ in range(7 if device.type == "cuda" else 1):
        synchronize(device)
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; a CPU has nothing queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
