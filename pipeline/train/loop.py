"""What happens around the steps of a training: metrics, evaluations, checkpoints, stops."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from pipeline import progress
from pipeline.config import Runtime, Training
from pipeline.errors import Interrupted, UserError
from pipeline.stage import append_json, append_timing, write_json
from pipeline.train.batches import Batch, Batches
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.train.interrupt import StopRequest
from pipeline.train.lines import cut_lines, sync_lines
from pipeline.train.meter import Meter
from pipeline.train.network import Network
from pipeline.train.ranks import Ranks
from pipeline.train.schedule import lr_at
from pipeline.views import Views

BAD_BATCH = "bad-batch.json"


@dataclass
class Loop(ABC):
    """A training without its step, which the subclasses have. `train` reads top to bottom."""

    out: Path
    seed: int
    round: int
    training: Training
    runtime: Runtime
    accelerator: Accelerator
    ranks: Ranks
    batches: Batches
    views: Views
    checkpoints: Checkpoints
    evaluate: Callable[[], dict[str, float]]
    """Evaluate the averaged weights on val: {"val_top1": ..., "val_nll": ...}."""
    stop: StopRequest
    step: int = field(default=0, init=False)
    best: tuple[float, int] = field(default=(-1.0, 0), init=False)
    """Best val accuracy so far, and its step."""
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.accelerator, self.metrics)

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """What a step measures, as metrics.jsonl names it."""

    @property
    @abstractmethod
    def networks(self) -> dict[str, Network]:
        """What is trained, by its name in the checkpoints. The first is the stage's model."""

    @property
    def ema(self) -> nn.Module:
        """The averaged weights that are the stage's model."""
        return next(iter(self.networks.values())).ema.model

    @abstractmethod
    def take_step(self, step: int, batches: Iterable[Batch]) -> int:
        """Train on the micro-batches of one step; returns how many images this rank saw."""

    def train(self) -> None:
        """Train from `self.step` to the last step.

        Raises:
            Interrupted: a stop was requested; the state is saved.
            UserError: the loss or the gradient is not finite; names the step, its images and the last good checkpoint.
        """
        training = self.training
        evaluate_at = {training.steps * (k + 1) // training.evaluations for k in range(training.evaluations)}
        self._enter_train_mode()
        started = time.monotonic()
        num_images = 0
        batches = self.batches.from_step(self.step, training.steps)
        for step in range(self.step, training.steps):
            num_images += self.take_step(step, islice(batches, training.accumulation))
            self.step = step + 1

            if self.step % self.runtime.log_every == 0 or self.step == training.steps:
                self._log(step)  # host sync
                self._log_time(time.monotonic() - started, num_images)
                started, num_images = time.monotonic(), 0
            if self.step in evaluate_at:
                self._evaluate()
                started = time.monotonic()
            stopping = self.ranks.any(self.stop.requested)
            if stopping or self.step % self.runtime.checkpoint_every == 0 or self.step == training.steps:
                self._checkpoint()
            if stopping:
                raise Interrupted(f"stopped after step {self.step} of {training.steps}; the state is saved")

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates of a step, as they are logged."""
        return {"lr": lr_at(step, self.training)}

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; metrics.jsonl is cut back to its step."""
        state = self.checkpoints.load_last()
        if state is not None:
            self.load(state)
        if self.accelerator.is_main_process:
            cut_lines(self.out / "metrics.jsonl", self.step)
            cut_lines(self.out / "timing.jsonl")

    def load(self, state: State) -> None:
        """Take over a checkpoint's state: weights, averages, optimizer, step, and the metrics not yet written."""
        for name, network in self.networks.items():
            network.load(state[name])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best = (state["best_top1"], state["best_step"])
        self.meter.load(state["meter"])

    def _evaluate(self) -> None:
        self._stop_if_weights_not_finite()
        values = self.evaluate()
        self._enter_train_mode()
        if values["val_top1"] > self.best[0]:
            self.best = (values["val_top1"], self.step)
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.step, {"ema": self.ema.state_dict()})
        self._append("metrics.jsonl", {"step": self.step, **values})

    def _log(self, step: int) -> None:
        self._stop_if_not_finite()
        line = {"step": step + 1, **self.rates(step), **self.meter.take()}
        self._append("metrics.jsonl", line)
        text = f"loss {line['loss']:.3f}  val {self.best[0]:.1%}" if self.best[1] else f"loss {line['loss']:.3f}"
        if self.accelerator.is_main_process:
            progress.report(self.out, self.step, self.training.steps, "steps", text)

    def _log_time(self, seconds: float, num_images: int) -> None:
        if self.accelerator.is_main_process:
            append_timing(self.out, self.step, seconds, num_images * self.accelerator.num_processes)

    def _stop_if_weights_not_finite(self) -> None:
        """Before weights are used or saved."""
        for network in self.networks.values():
            self.meter.mark(self.step - 1, network.is_finite())
        self._stop_if_not_finite()

    def _stop_if_not_finite(self) -> None:
        step = self.meter.bad_step()
        if step is None:
            return
        streams = self.batches.keys(step)
        good, all_keys = self.checkpoints.last_path(), self.out / BAD_BATCH
        if self.accelerator.is_main_process:
            write_json(all_keys, {"step": step, "images": streams})
        some = [key for keys in streams.values() for key in keys[:4]]
        raise UserError(
            f"the loss or gradient is not finite at step {step} (images {', '.join(some)}, ...; all in {all_keys}); "
            "lower optimizer.lr, set clip_norm, or lengthen warmup_steps. "
            + (f"The last good checkpoint is {good}" if good else "No checkpoint was written before")
        )

    def _checkpoint(self) -> None:
        self._stop_if_weights_not_finite()
        state = self.state()
        if self.accelerator.is_main_process:
            sync_lines(self.out / "metrics.jsonl")
            self.checkpoints.save(self.step, state)
        self.accelerator.wait_for_everyone()

    def state(self) -> State:
        """What a checkpoint holds: all that `load` takes over."""
        scaler = self.accelerator.scaler
        return {
            **{name: network.state() for name, network in self.networks.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best_top1": self.best[0],
            "best_step": self.best[1],
            "meter": self.meter.state(),
        }

    def _enter_train_mode(self) -> None:
        for network in self.networks.values():
            network.train_mode()

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_json(self.out / name, line)
