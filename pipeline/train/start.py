"""Where a training starts: another model's weights, or all of another training's last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config import Training, semantic
from pipeline.errors import UserError
from pipeline.models.folder import TIMM, find_weights, init_from, model_digest, start_state
from pipeline.stage import stage_record
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.trainer import Trainer

_KEPT = ("optimizer.name", "frozen_layers", "image_size", "mean", "std")
"""What `continue` cannot change: the first two shape the optimizer's state, the others are the model's input. Another
architecture shows in the weights."""


def semantic_training(training: Training) -> dict[str, Any]:
    """What a training's results depend on, with the start told by what it is and not by where."""
    values, start = semantic(training), training.start
    if start is not None:
        is_file = not start.model.startswith(TIMM)
        values["start"] = {"mode": start.mode, "model": model_digest(Path(start.model)) if is_file else start.model}
    return values


def load_start(model: nn.Module, training: Training) -> None:
    """Load the weights of `training.start`, if there is one.

    Raises:
        UserError: there is no such model, or it does not fit.
    """
    if training.start is None:
        return
    source = training.start.model
    state = start_state(source)
    if training.start.mode == "init":
        init_from(model, state, source)
        return
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"`start.model`: {source} does not fit {training.model} {training.model_args or ''} of "
            f"{model.num_classes} classes; set model and model_args to what it was trained as, or use mode: init"
        ) from error


def continue_training(trainer: Trainer, source: Path) -> None:
    """Take over step, optimizer, averages and best weights of another training's last checkpoint.

    What the config says of the learning rate, weight decay and momentum holds from then on.

    Raises:
        UserError: there is no checkpoint, it has come to `steps` already, or the config differs in what must stay.
    """
    folder, training = find_weights(source).parent, trainer.training
    if Checkpoints(folder, "", keep=1).last_path() is None:
        raise UserError(f"`start.model`: {source} has no checkpoint to continue; use mode: init")
    record = stage_record(folder)
    for key in _KEPT:
        theirs, ours = record["config"]["training"], semantic(training)
        for part in key.split("."):
            theirs, ours = theirs[part], ours[part]
        if theirs != ours:
            raise UserError(
                f"`{key}`: {source} was trained with {theirs}, which `start.mode: continue` cannot change to {ours}; "
                f"set it to {theirs}, or use mode: init"
            )
    checkpoints = Checkpoints(folder, record["fingerprint"], keep=1)
    state = checkpoints.load_last() or {}
    if "network" not in state:
        raise UserError(f"`start.model`: {source} is no train stage of this version; use mode: init")
    trainer.load(state)
    if trainer.step >= training.steps:
        raise UserError(
            f"`start.model`: {source} was trained for {trainer.step} steps already; set steps above that to continue"
        )
    if trainer.accelerator.is_main_process and trainer.checkpoints.last_path() is None:
        trainer.checkpoints.save_best(trainer.best[1], checkpoints.load_best())
