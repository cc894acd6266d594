"""The training loop, for teacher and student alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from pipeline import progress
from pipeline.config import Runtime, Training
from pipeline.errors import Interrupted, UserError
from pipeline.models import set_trainable
from pipeline.randomness import key_of, reseed_torch
from pipeline.stage import append_json, append_timing
from pipeline.train.batches import Batch, Batches
from pipeline.train.checkpoint import Checkpoints, State
from pipeline.train.ema import Ema
from pipeline.train.interrupt import StopRequest
from pipeline.train.lines import cut_lines, sync_lines
from pipeline.train.losses import combine, hard_cross_entropy, num_correct, soft_cross_entropy
from pipeline.train.meter import Meter
from pipeline.train.optimizer import load_optimizer, set_lr
from pipeline.train.ranks import Ranks
from pipeline.train.schedule import lr_at
from pipeline.views import Views


@dataclass
class Trainer:
    """Everything one training needs. `train` reads top to bottom."""

    out: Path
    seed: int
    round: int
    training: Training
    runtime: Runtime
    accelerator: Accelerator
    model: nn.Module
    """As Accelerate prepared it; `raw_model` is the same without wrappers."""
    raw_model: nn.Module
    optimizer: AcceleratedOptimizer
    ema: Ema
    batches: Batches
    views: Views
    checkpoints: Checkpoints
    evaluate: Callable[[], dict[str, float]]
    """Evaluate the EMA weights on val: {"val_top1": ..., "val_nll": ...}."""
    stop: StopRequest
    step: int = 0
    best: tuple[float, int] = (-1.0, 0)
    """Best val accuracy so far, and its step."""

    def __post_init__(self) -> None:
        self.meter = Meter(self.accelerator)
        self.ranks = Ranks()

    def train(self) -> None:
        """Train from `self.step` to the last step.

        Raises:
            Interrupted: a stop was requested; the state is saved.
            UserError: the loss or the gradient is not finite; names the step, its images and the last good checkpoint.
        """
        training, accelerator = self.training, self.accelerator
        evaluate_at = {training.steps * (k + 1) // training.evaluations for k in range(training.evaluations)}
        self._enter_train_mode()
        started = time.monotonic()
        num_images = 0
        for step, micro, batch in self.batches.from_step(self.step, training.steps):
            last_micro = micro == training.accumulation - 1
            reseed_torch(key_of(self.seed, "forward", self.round, step, micro, accelerator.process_index))
            with nullcontext() if last_micro else accelerator.no_sync(self.model):
                loss, metrics = self._loss(batch)
                accelerator.backward(loss / training.accumulation)
            self.meter.add_loss(step, metrics, 1 / training.accumulation)
            num_images += len(batch.images)
            if not last_micro:
                continue

            grad_norm = self._clip()
            set_lr(self.optimizer, lr_at(step, training))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            # BatchNorm statistics: every rank averages, evaluates and saves the same model.
            self.ranks.average([b for b in self.raw_model.buffers() if b.is_floating_point()])
            if not self.optimizer.step_was_skipped:  # fp16 overflow: the scaler skipped this step
                self.ema.update()
                self.meter.add_update(step, grad_norm)
            self.meter.end_step()
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
        self.raw_model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["num_updates"]
        load_optimizer(self.optimizer, state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best = (state["best_top1"], state["best_step"])
        self.meter.load(state["meter"])

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of one micro-batch and its detached METRICS (without the gradient's norm)."""
        device, training, num_labeled = self.accelerator.device, self.training, batch.num_labeled
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        if training.noise_labeled:
            views = self.views.strong(images, batch.positions)
        else:
            weak = self.views.weak(images[:num_labeled], batch.positions[:num_labeled])
            strong = self.views.strong(images[num_labeled:], batch.positions[num_labeled:])
            views = torch.cat([weak, strong])
        logits = self.model(views)  # one forward: BatchNorm sees the mixed batch (Noisy Student's code)
        labeled = hard_cross_entropy(logits[:num_labeled], labels, training.label_smoothing)
        unlabeled = soft_cross_entropy(logits[num_labeled:], targets)
        loss = combine(
            labeled, unlabeled, training.loss_normalization, num_labeled=num_labeled, num_total=len(batch.images)
        )
        with torch.no_grad():
            num_unlabeled = max(len(batch.targets), 1)
            agreement = num_correct(logits[num_labeled:], targets.argmax(1)) / num_unlabeled
            top1 = num_correct(logits[:num_labeled], labels) / num_labeled
            metrics = torch.stack([loss, labeled.mean(), unlabeled.sum() / num_unlabeled, top1, agreement])
        return loss, metrics

    def _clip(self) -> Tensor:
        """Clip the gradient, unless clipping is off; returns its norm before. The norm takes under 1% of a step."""
        self.accelerator.unscale_gradients()
        gradients = [p.grad for p in self.raw_model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.training.clip_norm:
            nn.utils.clip_grads_with_norm_(self.raw_model.parameters(), self.training.clip_norm, norm)
        return norm

    def _evaluate(self) -> None:
        self._stop_if_weights_not_finite()
        values = self.evaluate()
        self._enter_train_mode()
        if values["val_top1"] > self.best[0]:
            self.best = (values["val_top1"], self.step)
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.step, {"ema": self.ema.model.state_dict()})
        self._append("metrics.jsonl", {"step": self.step, **values})

    def _log(self, step: int) -> None:
        self._stop_if_not_finite()
        line = {"step": step + 1, "lr": lr_at(step, self.training), **self.meter.take()}
        self._append("metrics.jsonl", line)
        text = f"loss {line['loss']:.3f}  val {self.best[0]:.1%}" if self.best[1] else f"loss {line['loss']:.3f}"
        if self.accelerator.is_main_process:
            progress.report(self.out, self.step, self.training.steps, "steps", text)

    def _log_time(self, seconds: float, num_images: int) -> None:
        if self.accelerator.is_main_process:
            append_timing(self.out, self.step, seconds, num_images * self.accelerator.num_processes)

    def _stop_if_weights_not_finite(self) -> None:
        """Before weights are used or saved: a finite loss can have a gradient that is not."""
        norms = torch._foreach_norm([t for t in self.raw_model.state_dict().values() if t.is_floating_point()])
        self.meter.mark(self.step - 1, torch.isfinite(torch.stack(norms)).all())
        self._stop_if_not_finite()

    def _stop_if_not_finite(self) -> None:
        step = self.meter.bad_step()
        if step is None:
            return
        keys = self.batches.keys(step)
        good = self.checkpoints.last_path()
        raise UserError(
            f"the loss or gradient is not finite at step {step} (images {', '.join(keys[:8])}"
            f"{', ...' if len(keys) > 8 else ''}); lower optimizer.lr, set clip_norm, or lengthen warmup_steps. "
            + (f"The last good checkpoint is {good}" if good else "No checkpoint was written before")
        )

    def _checkpoint(self) -> None:
        self._stop_if_weights_not_finite()
        state = self._state()
        if self.accelerator.is_main_process:
            sync_lines(self.out / "metrics.jsonl")
            self.checkpoints.save(self.step, state)
        self.accelerator.wait_for_everyone()

    def _state(self) -> State:
        scaler = self.accelerator.scaler
        return {
            "model": self.raw_model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "num_updates": self.ema.num_updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best_top1": self.best[0],
            "best_step": self.best[1],
            "meter": self.meter.state(),
        }

    def _enter_train_mode(self) -> None:
        self.model.train()
        set_trainable(self.raw_model, self.training.frozen_layers)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            append_json(self.out / name, line)
