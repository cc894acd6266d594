"""The train stage: it makes a model folder from labeled images, pseudo-labels and a start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipeline.config import Split, Training, semantic
from pipeline.config.base import is_technique, off_value
from pipeline.errors import UserError
from pipeline.evaluate.judged import MODEL_FILES
from pipeline.evaluate.patches import in_fingerprint
from pipeline.models.format import find_weights, model_digest
from pipeline.models.weights import distilled_from, semantic_settings, start_inputs
from pipeline.shards.dataset import open_split
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import RECORD, finish_folder, open_folder, read_record, stage_record
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import KINDS, load_object
from pipeline.stages.machine import environment
from pipeline.stages.preamble import Stage
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.learner import Learner
from pipeline.train.loop import NO_BEST, Loop
from pipeline.train.network import Network
from pipeline.train.setup import Setup
from pipeline.train.validation import Validation
from pipeline.views.crops import CROPS

log = logging.getLogger("selftrain.train")

_KEPT = (
    *("activation", "fractional_pooling", "optimizer.name", "optimizer.decay_vectors"),
    *("frozen_layers", "freeze_norm", "layer_decay", "head_lr", "thaw_steps"),
    *("image_size", "evaluation_size", "preprocessing", "mean", "std", "crop_pct", "crop_mode", "interpolation"),
)
"""The keys that `start.mode: continue` cannot change. The first ones are the model's function, the next ones
shape the optimizer's state, the others are the model's input. Another architecture shows in the weights."""


def train_inputs(job: TrainJob) -> StageInputs:
    """The settings and inputs that the trained model is a function of.

    Sections that a learner reads beside `training` are added only where there are some, so that a new method changes no
    fingerprint.
    """
    config: dict[str, Any] = {
        "seed": job.seed,
        "round": job.round,
        "method": job.method,
        "training": semantic_settings(job.training),
        **{name: semantic(section) for name, section in job.settings.items()},
        "data": semantic(job.data),
        "flip": job.evaluate.flip,
        "eval_batch_size": job.evaluate.batch_size,
        "precision": job.runtime.precision,
        "compile": job.runtime.compile,
    }
    config |= in_fingerprint(job.evaluate)
    if job.training.weak.cuts_stored_images:
        config["crops"] = CROPS
    learner: type[Learner] = load_object(job.learner)
    splits: tuple[Split, ...] = ("labeled", "unlabeled", "val") if learner.reads_unlabeled else ("labeled", "val")
    inputs: dict[str, str] = {split: open_split(job.data, split).fingerprint for split in splits}
    inputs |= start_inputs(job.training)
    if (teacher := distilled_from(job.training)) is not None:
        inputs["distilled"] = model_digest(teacher)
    if job.best_by != "top1":
        config["judge_by"] = job.best_by
    if job.teacher is not None:
        config["teacher"] = semantic_settings(job.teacher)
    if job.selection is not None:
        inputs["selection"] = stage_record(job.selection)["fingerprint"]
    if job.labels is not None:
        inputs["labels"] = stage_record(job.labels)["fingerprint"]
    return StageInputs(config, inputs)


def run_train(job: TrainJob, stage: Stage) -> None:
    """Train one model, or take it as it is with `start.mode: use`. A killed training is resumed.

    Raises:
        UserError: the data, the config or the start is bad, or the loss is not finite.
        Interrupted: a signal stopped it; its state is saved.
    """
    setup = Setup(job, stage.ranks, dict(stage.inputs.inputs))
    learner: Learner = load_object(job.learner)(setup)
    validation = Validation(setup)
    checkpoints = Checkpoints(job.out, stage.fingerprint, job.runtime.keep_checkpoints)
    loop = Loop(stage, job, learner, checkpoints, lambda: validation.evaluate(learner.networks))
    start = job.training.start
    if start is not None and start.mode == "continue":
        continue_training(loop, start.model)
    if start is None or start.mode != "use":
        loop.resume()
        loop.run()
        if job.training.keep == "best":
            learner.model.ema.model.load_state_dict(checkpoints.load_best()["ema"])
    for name, network in list(learner.networks.items())[1:]:
        _write_beside(name, network, job, stage, validation, loop.step)
    assert learner.model.info is not None
    validation.write(job.out, learner.model.ema.model, learner.model.info)
    digest = model_digest(job.out) if stage.ranks.is_main else ""
    best_top1, best_step = loop.best
    figures = {"steps": loop.step, "best_step": best_step, "best_top1": max(best_top1, 0.0)}
    if loop.step:
        done, best = f"{loop.step:,} steps", f"{best_top1:.2%} after step {best_step:,}"
        log.info("%s are done; best on val: %s; keep: %s", done, best, job.training.keep)
    stopped = {"stopped_early": True} if loop.has_stalled() and loop.step < job.training.steps else {}
    stage.finish(MODEL_FILES, model_sha256=digest, **figures, **stopped)


def _write_beside(name: str, network: Network, job: TrainJob, stage: Stage, validation: Validation, steps: int) -> None:
    """Write a network that was trained along as a stage folder of its own, below this one, to be used as a model."""
    if network.info is None:
        return
    out = job.out / name
    if stage.ranks.is_main:
        config = {**stage.inputs.config, "training": semantic_settings(network.settings)}
        version, env = KINDS["train"].version, environment(job.runtime)
        inputs = StageInputs(config, stage.inputs.inputs)
        open_folder(out, "train", version, inputs, env, accept_environment=job.accept_environment)
    validation.write(out, network.ema.model, network.info)
    if stage.ranks.is_main:
        finish_folder(out, MODEL_FILES, model_sha256=model_digest(out), steps=steps)


def continue_training(loop: Loop, source: str) -> None:
    """Take over the step, optimizer, averages and best weights of another training's last, or of a named, checkpoint.

    Learning rate, weight decay and momentum are those of this config from then on.

    Raises:
        UserError: there is no checkpoint, it has reached `steps` already, or the config differs in what must stay.
    """
    found, training = find_weights(Path(source)), loop.job.training
    folder = found.parent if found.suffix != ".pt" else found.parent.parent
    path = Checkpoints(folder, "", keep=1).last_path() if found.suffix != ".pt" else found
    if path is None or not (folder / RECORD).exists():
        raise UserError(f"`start.model`: {source} has no checkpoint to continue; use mode: init")
    # A named checkpoint may be of a training that did not end, such as one whose loss stopped being finite.
    record = stage_record(folder) if path != found else read_record(folder)
    off = {name: off_value(field) for name, field in Training.model_fields.items() if is_technique(field)}
    theirs, ours = ({**off, **values} for values in (record["config"]["training"], semantic(training)))
    for key in _KEPT:
        a, b = _at(theirs, key), _at(ours, key)
        if a != b:
            raise UserError(
                f"`{key}`: {source} was trained with {a}, which `start.mode: continue` cannot change to {b}; set it to "
                f"{a}, or use mode: init"
            )
    checkpoints = Checkpoints(folder, record["fingerprint"], keep=1)
    state = checkpoints.load(path)
    if not set(loop.learner.networks) <= set(state):
        raise UserError(f"`start.model`: {source} is no train stage of this method or version; use mode: init")
    loop.load(state)
    loop.begun = loop.step
    if loop.step >= training.steps:
        raise UserError(
            f"`start.model`: {source} was trained for {loop.step} steps already; set steps above that to continue"
        )
    best = checkpoints.load_best() if loop.best[1] else None
    same_figure = record["config"].get("judge_by", "top1") == loop.job.best_by
    if best is None or best["step"] != loop.best[1] or not same_figure:  # those of a later step have replaced them
        loop.best = NO_BEST
    elif loop.ranks.is_main and loop.checkpoints.last_path() is None:
        loop.checkpoints.save_best(loop.best[1], best)


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
