"""The sums of what a training measures between two lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """The sums since the last line, and the first step at which something was not finite.

    Both stay on the device, so that no step waits for them. A method that says "host sync" does wait, and all ranks
    must call it.
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[str]) -> None:
        self._accelerator = accelerator
        self._names = tuple(names)
        self._sums = torch.zeros(len(names), device=accelerator.device)
        self._counts = [0] * len(names)
        self._nothing = torch.zeros((), device=accelerator.device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=accelerator.device)

    def add(self, step: int, measured: Mapping[str, Tensor]) -> None:
        """Add the measurements [] of a micro-batch or an update, for some or all of the names."""
        values = torch.stack([measured.get(name, self._nothing) for name in self._names])
        self._sums += values
        self._counts = [n + (name in measured) for n, name in zip(self._counts, self._names, strict=True)]
        self.mark(step, torch.isfinite(values).all())

    def mark(self, step: int, finite: Tensor) -> None:
        """Remember the first step at which `finite`, bool [], is false."""
        self._bad_step = torch.where((self._bad_step < 0) & ~finite, step, self._bad_step)

    def bad_step(self) -> int | None:
        """The first step at which something was not finite on any rank; None if there is none. Host sync."""
        steps = self._accelerator.gather(self._bad_step.reshape(1)).tolist()
        return min((int(s) for s in steps if s >= 0), default=None)

    def take(self) -> dict[str, float | None]:
        """The means since the last call, over all ranks; None for a name that was not measured. Host sync."""
        sums = self._accelerator.reduce(self._sums.clone(), "mean").tolist()
        means = {name: s / n if n else None for name, s, n in zip(self._names, sums, self._counts, strict=True)}
        self._sums.zero_()
        self._counts = [0] * len(self._names)
        return means

    def state(self) -> dict[str, Any]:
        """The sums that no line holds yet, one row per rank. Host sync."""
        return {"sums": self._accelerator.gather(self._sums[None]).cpu(), "counts": list(self._counts)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state. If the number of ranks changed, each gets the mean, so a line changes by rounding only."""
        sums = state["sums"]
        same = len(sums) == self._accelerator.num_processes
        self._sums.copy_(sums[self._accelerator.process_index] if same else sums.mean(0))
        self._counts = list(state["counts"])
