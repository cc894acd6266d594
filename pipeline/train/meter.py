"""What a training measures between two lines of metrics.jsonl."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

METRICS = ("loss", "labeled_loss", "unlabeled_loss", "labeled_top1", "unlabeled_agreement", "grad_norm")


class Meter:
    """Sums of METRICS since the last line, and the first step at which something was not finite.

    Both stay on the device, so that no step waits for it; what says "host sync" below does wait, and all ranks must
    call it.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums = torch.zeros(len(METRICS), device=accelerator.device)
        self._num_steps = self._num_updates = 0
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=accelerator.device)

    def add_loss(self, step: int, metrics: Tensor, share: float) -> None:
        """Add a micro-batch's METRICS (all but the last), which is this share of a step."""
        self._sums[:-1] += metrics * share
        self.mark(step, torch.isfinite(metrics[0]))

    def add_update(self, step: int, grad_norm: Tensor) -> None:
        """Add the gradient's norm of a step that was taken."""
        self._sums[-1] += grad_norm
        self._num_updates += 1
        self.mark(step, torch.isfinite(grad_norm))

    def end_step(self) -> None:
        """Count a step."""
        self._num_steps += 1

    def mark(self, step: int, finite: Tensor) -> None:
        """Remember the first step at which something was not finite."""
        self._bad_step = torch.where((self._bad_step < 0) & ~finite, step, self._bad_step)

    def bad_step(self) -> int | None:
        """The first step, on any rank, at which something was not finite. Host sync."""
        steps = self._accelerator.gather(self._bad_step.reshape(1)).tolist()
        return min((int(s) for s in steps if s >= 0), default=None)

    def take(self) -> dict[str, float | None]:
        """The means since the last call, over steps and ranks; None where nothing was measured. Host sync."""
        sums = self._accelerator.reduce(self._sums.clone(), "mean").tolist()
        counts = [self._num_steps] * (len(METRICS) - 1) + [self._num_updates]
        self._sums.zero_()
        self._num_steps = self._num_updates = 0
        return {name: s / n if n else None for name, s, n in zip(METRICS, sums, counts, strict=True)}

    def state(self) -> dict[str, Any]:
        """What is not yet in a line, a row of sums a rank. Host sync."""
        sums = self._accelerator.gather(self._sums[None]).cpu()
        return {"sums": sums, "num_steps": self._num_steps, "num_updates": self._num_updates}

    def load(self, state: dict[str, Any]) -> None:
        """Take a state over. Of another number of ranks each gets their mean: the same line but for rounding."""
        sums = state["sums"]
        same = len(sums) == self._accelerator.num_processes
        self._sums.copy_(sums[self._accelerator.process_index] if same else sums.mean(0))
        self._num_steps, self._num_updates = state["num_steps"], state["num_updates"]
