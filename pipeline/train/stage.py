"""The train stage: from labeled images, a selection and a start to one model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.jobs import TrainJob
from pipeline.labels.targets import open_targets
from pipeline.models.folder import TIMM, ModelInfo, has_info, read_info
from pipeline.shards.dataset import open_split
from pipeline.stage import StageFolder, stage_record
from pipeline.train.batches import Batches
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.interrupt import StopRequest
from pipeline.train.setting import Setting, open_setting
from pipeline.train.start import continue_training, semantic_training
from pipeline.train.trainer import Trainer


def train_inputs(job: TrainJob) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's output is a function of: its semantic config and the fingerprints of its inputs."""
    training = semantic_training(job.training)
    config: dict[str, Any] = {
        "seed": job.seed,
        "round": job.round,
        "training": training,
        "data": semantic(job.data),
        "flip": job.evaluate.flip,
        "eval_batch_size": job.evaluate.batch_size,
        "precision": job.runtime.precision,
        "compile": job.runtime.compile,
    }
    inputs = {
        "labeled": open_split(job.data, "labeled").fingerprint,
        "val": open_split(job.data, "val").fingerprint,
    }
    if job.selection is not None:
        inputs["selection"] = stage_record(job.selection)["fingerprint"]
    start = job.training.start
    if start is not None and not start.model.startswith(TIMM):
        inputs["start"] = training["start"]["model"]
    return config, inputs


def run_train(job: TrainJob) -> None:
    """Train one model, or take it as it is with `start.mode: use`; resumes where it was killed.

    Raises:
        UserError: bad data, config or start; a loss that is not finite.
        Interrupted: stopped by a signal, with everything saved.
    """
    stop = StopRequest()
    config, inputs = train_inputs(job)
    setting, stage = open_setting(job, "train", config, inputs)
    if stage.complete:
        return
    info = _info(job, setting, inputs)
    trainer = _set_up(job, stage, setting, info, stop)
    if job.training.start is None or job.training.start.mode != "use":
        trainer.resume()
        trainer.train()
        if job.training.keep == "best":
            trainer.ema.load_state_dict(trainer.checkpoints.load_best()["ema"])
    model_sha256 = setting.write(job.out, trainer.ema, info)
    if setting.accelerator.is_main_process:
        best_top1, best_step = trainer.best
        stage.finish(model_sha256=model_sha256, steps=trainer.step, best_step=best_step, best_top1=max(best_top1, 0.0))
    setting.end()


def _info(job: TrainJob, setting: Setting, inputs: dict[str, str]) -> ModelInfo:
    training, classes = job.training, setting.labeled.classes
    if training.start is not None and training.start.mode != "init" and has_info(training.start.model):
        info = read_info(Path(training.start.model))
        if info.classes != classes:
            raise UserError(
                f"`start.model`: {training.start.model} knows other classes than the data "
                f"({', '.join(info.classes[:5])}, ...); use mode: init to train it on these"
            )
        if training.start.mode == "use":
            return info
    return setting.new_info(training, role=job.role, **inputs)


def _set_up(job: TrainJob, stage: StageFolder, setting: Setting, info: ModelInfo, stop: StopRequest) -> Trainer:
    training, accelerator = job.training, setting.accelerator
    network = setting.network(training, info)
    trainer = Trainer(
        out=job.out,
        seed=job.seed,
        round=job.round,
        training=training,
        runtime=job.runtime,
        accelerator=accelerator,
        ranks=setting.ranks,
        network=network,
        batches=_batches(job, setting),
        views=setting.views(training),
        checkpoints=Checkpoints(job.out, stage.fingerprint, job.runtime.keep_checkpoints),
        evaluate=lambda: setting.evaluate(network.ema.model, info),
        stop=stop,
    )
    if training.start is not None and training.start.mode == "continue":
        continue_training(trainer, Path(training.start.model))
    return trainer


def _batches(job: TrainJob, setting: Setting) -> Batches:
    training, accelerator = job.training, setting.accelerator
    unlabeled = targets = None
    if job.selection is not None:
        unlabeled_set = open_split(job.data, "unlabeled")
        selection, targets = open_targets(job.selection, unlabeled_set)
        copies = np.zeros(len(unlabeled_set), selection.copies.dtype)
        copies[selection.rows] = selection.copies
        unlabeled = setting.stream(unlabeled_set, "unlabeled", training, training.unlabeled_batch_size, copies)
    return Batches(
        setting.stream(setting.labeled, "labeled", training, training.batch_size),
        unlabeled,
        targets,
        num_classes=len(setting.labeled.classes),
        label_smoothing=training.label_smoothing,
        accumulation=training.accumulation,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        pin=accelerator.device.type == "cuda",
    )
