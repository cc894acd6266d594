"""The loop around the steps of a training: metrics, evaluations, checkpoints and stops."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, UserError
from pipeline.evaluate.metrics import NotFinite
from pipeline.files import append_json, cut_lines, sync_lines, write_json
from pipeline.models.checkpoints import State
from pipeline.models.format import described
from pipeline.stages import progress
from pipeline.stages.folder import append_timing
from pipeline.stages.jobs import TrainJob
from pipeline.stages.preamble import Stage
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.learner import Learner

log = logging.getLogger("selftrain.train")

BAD_BATCH = "bad-batch.json"
NO_BEST = (-1.0, 0)
_REMEDY = "Lower optimizer.lr, set clip_norm, or lengthen warmup_steps."


class Loop:
    """A training in progress. It has a learner, and its `run` reads from top to bottom.

    Args:
        stage: The open stage.
        job: What to train.
        learner: The learner that takes the steps.
        checkpoints: The folder in which states are kept.
        evaluate: Evaluates the averaged weights on val and returns the figures of a line of metrics.jsonl, `val_top1`
            and the one of `job.best_by` among them.
    """

    def __init__(
        self,
        stage: Stage,
        job: TrainJob,
        learner: Learner,
        checkpoints: Checkpoints,
        evaluate: Callable[[], dict[str, float]],
    ) -> None:
        self.stage, self.job, self.learner = stage, job, learner
        self.out, self.ranks, self.checkpoints, self.evaluate = stage.path, stage.ranks, checkpoints, evaluate
        self.step = 0
        self.begun = 0
        """The step at which it begins; that of the training that it continues, if it does."""
        self.best = NO_BEST
        """The best figure on val so far (`rounds.judge_by`), and its step."""
        steps, number = job.training.steps, job.training.evaluations
        self.evaluate_at = {steps * (k + 1) // number for k in range(number)}

    def run(self) -> None:
        """Train from `self.step` to the last step, or to an early stop.

        Raises:
            Interrupted: a stop was requested; the state is saved.
            UserError: the loss or the gradient is not finite. The message names the step, its images and the last good
                checkpoint.
        """
        training, runtime, learner = self.job.training, self.job.runtime, self.learner
        thaw_at = {network.settings.thaw_steps for network in learner.networks.values()}
        self._enter_train_mode()
        started = time.monotonic()
        num_images = 0
        batches = learner.batches.from_step(self.step, training.steps)
        while self.step < training.steps and not self.has_stalled():
            step = self.step
            if step in thaw_at:
                self._enter_train_mode()
            num_images += learner.update(step, islice(batches, training.accumulation))
            self.step = step + 1

            if self.step % runtime.log_every == 0 or self.step == training.steps:
                self._log(step, started, num_images)
                started, num_images = time.monotonic(), 0
            if self.step in self.evaluate_at:
                before = time.monotonic()
                self._evaluate()
                started += time.monotonic() - before  # the time of an evaluation is not that of steps
            if (ends := self.has_stalled()) and num_images:
                self._log(step, started, num_images)
            stopping = self.ranks.any(self.stage.stop.requested)
            if stopping or ends or self.step % runtime.checkpoint_every == 0 or self.step == training.steps:
                self._checkpoint()
            if stopping:
                raise Interrupted(f"stopped after step {self.step} of {training.steps}; the state is saved")
        if self.has_stalled():
            progress.report(self.out, self.step, self.step, "steps", f"stopped early, best val {self.best[0]:.1%}")

    def has_stalled(self) -> bool:
        """Whether `early_stop` evaluations have come since the best one, or since the model began to learn as a whole.

        It is a function of what checkpoints hold, so a training that is resumed stops at the same step.
        """
        return 0 < self.job.training.early_stop <= self._num_evaluations_since(self.learner.waits)

    def _is_on_plateau(self) -> bool:
        """Whether `schedule.patience` evaluations have come since the best one, since the learning rate fell last, or
        since it was at its peak. Like an early stop, this is the same on all ranks and after a resume."""
        schedule = self.job.training.schedule
        if schedule is None or schedule.name != "plateau":
            return False
        return schedule.patience <= self._num_evaluations_since(self.learner.rises, *self.learner.falls)

    def _num_evaluations_since(self, *steps: int) -> int:
        """The number of evaluations after the best one, after the beginning, and after all of these steps."""
        since = max(self.best[1], self.begun, *steps)
        return sum(since < step <= self.step for step in self.evaluate_at)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one, and cut metrics.jsonl back to its step.

        Raises:
            UserError: metrics.jsonl is gone.
        """
        path = self.ranks.gather(self.checkpoints.last_path())[0]  # other machines may see an older listing
        state, metrics = self.checkpoints.load(path) if path else None, self.out / "metrics.jsonl"
        if state is not None:
            self.load(state)
        if self.ranks.is_main:
            if state is None:
                metrics.touch()
            elif not metrics.exists():
                raise UserError(
                    f"{metrics} is gone, with what was measured in the {self.step} steps that are done; delete the "
                    f"folder {self.out} and type the same command again to begin it anew"
                )
            cut_lines(metrics, self.step)
            cut_lines(self.out / "timing.jsonl")

    def load(self, state: State) -> None:
        """Restore the state of a checkpoint: weights, averages, optimizer, step, and the metrics not yet written."""
        for name, network in self.learner.networks.items():
            network.load(state[name])
        if self.learner.accelerator.scaler is not None and state["scaler"] is not None:
            self.learner.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best = (state["best_top1"], state["best_step"])
        self.learner.falls = list(state.get("falls", ()))
        self.learner.meter.load(state["meter"])
        self.learner.load_extra(state)

    def _evaluate(self) -> None:
        self._stop_if_weights_not_finite()
        try:
            values = self.evaluate()
        except NotFinite as error:  # weights may be finite and so large that what they compute is not
            good = self.checkpoints.last_path()
            raise UserError(f"after step {self.step} on val, {error}. {_REMEDY} {self._what_is_good(good)}") from error
        self._enter_train_mode()
        judged = values[f"val_{self.job.best_by}"]
        if judged > self.best[0]:
            self.best = (judged, self.step)
            if self.ranks.is_main:
                weights = {"ema": self.learner.model.ema.model.state_dict()}
                self.checkpoints.save_best(self.step, {**weights, "info": self._info()})
        if self._is_on_plateau():
            self.learner.falls.append(self.step)
        self._append("metrics.jsonl", {"step": self.step, **values})
        figures = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.info("step %s of %s: %s", f"{self.step:,}", f"{self.job.training.steps:,}", figures)

    def _log(self, step: int, started: float, num_images: int) -> None:
        self._stop_if_not_finite()  # host sync: from here on the steps since `started` are done
        seconds = time.monotonic() - started
        line = {"step": step + 1, **self.learner.rates(step), **self.learner.meter.take()}
        self._append("metrics.jsonl", line)
        text = f"loss {line['loss']:.3f}  val {self.best[0]:.1%}" if self.best[1] else f"loss {line['loss']:.3f}"
        if self.ranks.is_main:
            progress.report(self.out, self.step, self.job.training.steps, "steps", text)
            append_timing(self.out, self.step, seconds, num_images * self.ranks.number)

    def _stop_if_weights_not_finite(self) -> None:
        """Raise UserError, before weights are used or saved, if some are not finite."""
        for network in self.learner.networks.values():
            self.learner.meter.mark(self.step - 1, network.is_finite())
        self._stop_if_not_finite()

    def _stop_if_not_finite(self) -> None:
        step = self.learner.meter.bad_step()
        if step is None:
            return
        streams = self.learner.batches.keys(step)
        good, all_keys = self.checkpoints.last_path(), self.out / BAD_BATCH
        if self.ranks.is_main:
            write_json(all_keys, {"step": step, "images": streams})
        some = [key for keys in streams.values() for key in keys[:4]]
        raise UserError(
            f"the loss or gradient is not finite at step {step} (images {', '.join(some)}, ...; all in {all_keys}). "
            f"{_REMEDY} {self._what_is_good(good)}"
        )

    def _what_is_good(self, good: Path | None) -> str:
        there = f"The last good checkpoint is {good}" if good else "No checkpoint was written before"
        return there + self._way_on(good)

    def _way_on(self, good: Path | None) -> str:
        """The options by which the command goes on: from the checkpoint, or from the beginning.

        A rate that is far too high leaves finite weights that nothing mends, so what failed to go on begins anew. So
        does a student of stored labels, because `start` would be that of all students.
        """
        job, start = self.job, self.job.training.start
        if job.role not in ("teacher", "student"):
            return ""
        way, values = "begin anew", {"optimizer.lr": f"{job.training.optimizer.lr / 10:g}"}
        if start is not None and Path(start.model).suffix == ".pt":
            way, values = "begin anew without start", {"start": "null", **values}
        elif good is not None and job.selection is None:
            mode = "continue" if job.role == "teacher" else "init"
            way, values = "go on from it", {"start.model": str(good), "start.mode": mode, **values}
        if "start.model" in values:  # which gives the weights
            values |= {key: "null" for key in ("init", "zero_gamma") if getattr(job.training, key) is not None}
        options = [f"--set {shlex.quote(f'{job.role}.{key}={value}')}" for key, value in values.items()]
        return f"; to {way}, add to the command: {' '.join(options)}"

    def _checkpoint(self) -> None:
        self._stop_if_weights_not_finite()
        state = self.state()
        if self.ranks.is_main:
            sync_lines(self.out / "metrics.jsonl")
            self.checkpoints.save(self.step, state)
        self.ranks.wait()

    def state(self) -> State:
        """The state that a checkpoint holds and that `load` restores."""
        scaler = self.learner.accelerator.scaler
        return {
            **{name: network.state() for name, network in self.learner.networks.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "best_top1": self.best[0],
            "best_step": self.best[1],
            "falls": self.learner.falls,
            "meter": self.learner.meter.state(),
            **self.learner.extra(),
            "info": self._info(),
        }

    def _info(self) -> dict[str, Any] | None:
        """What a checkpoint says of its model, so that it can be used as one."""
        info = self.learner.model.info
        return described(info) if info is not None else None

    def _enter_train_mode(self) -> None:
        for network in self.learner.networks.values():
            network.train_mode(self.step)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.ranks.is_main:
            append_json(self.out / name, line)
