"""The train stage: from labeled images, a selection and a start to one model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from pipeline.config import StrongView, Training, WeakView, semantic
from pipeline.errors import UserError
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.predict import Predictor, predict
from pipeline.jobs import TrainJob
from pipeline.labels.targets import open_targets
from pipeline.models import build, set_trainable
from pipeline.models.folder import ModelInfo, has_info, model_digest, read_info, save_model
from pipeline.randomness import key_of, reseed_torch
from pipeline.runtime import describe
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.order import Order
from pipeline.shards.read import Reader
from pipeline.stage import StageFolder, atomic_path, environment, open_stage, stage_record, write_json
from pipeline.train.batches import Batches, Stream
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.ema import Ema
from pipeline.train.interrupt import StopRequest
from pipeline.train.loop import Trainer
from pipeline.train.optimizer import make_optimizer
from pipeline.train.ranks import WAIT
from pipeline.train.start import continue_training, load_start
from pipeline.views import Views

NUM_FIRST_IMAGES = 1000


def train_inputs(job: TrainJob) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's output is a function of: its semantic config and the fingerprints of its inputs."""
    training = semantic(job.training)
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
    if start is not None and not start.model.startswith("timm:"):
        inputs["start"] = model_digest(Path(start.model))
    if start is not None:
        training["start"] = {"mode": start.mode, "model": inputs.get("start", start.model)}
    return config, inputs


def run_train(job: TrainJob) -> None:
    """Train one model, or take it as it is with `start.mode: use`; resumes where it was killed.

    Raises:
        UserError: bad data, config or start; a loss that is not finite.
        Interrupted: stopped by a signal, with everything saved.
    """
    stop = StopRequest()
    torch.set_num_threads(max(job.runtime.threads, 1))
    env = environment(**describe(job.runtime))
    config, inputs = train_inputs(job)
    accelerator = _accelerator(job)
    with accelerator.main_process_first():
        stage = open_stage(job.out, "train", config, inputs, env, accept_environment=job.accept_environment)
    if stage.complete:
        return
    labeled, val = open_split(job.data, "labeled"), open_split(job.data, "val")
    info = _info(job, labeled, inputs)
    val_reader = Reader(val, info.input_size[-1], job.data)
    trainer = _set_up(job, stage, accelerator, labeled, val, val_reader, info, stop)
    if job.training.start is None or job.training.start.mode != "use":
        trainer.resume()
        trainer.train()
        if job.training.keep == "best":
            trainer.ema.model.load_state_dict(trainer.checkpoints.load_best()["ema"])
    _finish(job, stage, trainer, val, val_reader, info)


def _accelerator(job: TrainJob) -> Accelerator:
    precision = {"fp32": "no"}.get(job.runtime.precision, job.runtime.precision)
    # DDP would copy rank 0's BatchNorm statistics to the others before each step, which the loop has averaged already.
    handlers = [InitProcessGroupKwargs(timeout=WAIT), DistributedDataParallelKwargs(broadcast_buffers=False)]
    return Accelerator(cpu=job.runtime.device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)


def _info(job: TrainJob, labeled: Dataset, inputs: dict[str, str]) -> ModelInfo:
    training = job.training
    if training.start is not None and training.start.mode != "init" and has_info(training.start.model):
        info = read_info(Path(training.start.model))
        if info.classes != labeled.classes:
            raise UserError(
                f"`start.model`: {training.start.model} knows other classes than the data "
                f"({', '.join(info.classes[:5])}, ...); use mode: init to train it on these"
            )
        if training.start.mode == "use":
            return info
    return ModelInfo(
        schema=1,
        architecture=training.model,
        model_args=training.model_args,
        classes=labeled.classes,
        input_size=(3, training.image_size, training.image_size),
        mean=training.mean,
        std=training.std,
        metrics={},
        lineage={"role": job.role, "round": job.round, "seed": job.seed, **inputs},
    )


def _set_up(
    job: TrainJob,
    stage: StageFolder,
    accelerator: Accelerator,
    labeled: Dataset,
    val: Dataset,
    val_reader: Reader,
    info: ModelInfo,
    stop: StopRequest,
) -> Trainer:
    training = job.training
    reseed_torch(key_of(job.seed, "init", job.round))
    model = build(
        info.architecture,
        len(labeled.classes),
        dropout=training.dropout,
        stochastic_depth=training.stochastic_depth,
        model_args=info.model_args,
    ).to(device=accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if hasattr(model, "init_from_images"):
        model.init_from_images(_first_images(job, labeled, info))
    load_start(model, training)
    ema = Ema(model, training.ema_decay)  # before prepare, which patches `forward` for autocast
    set_trainable(model, training.frozen_layers)  # before DDP, which would wait for gradients of frozen layers
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            f"`frozen_layers`: {training.frozen_layers} freezes all of {training.model}, which leaves nothing to "
            "train; set it lower"
        )
    optimizer = make_optimizer(model, training.optimizer)
    wrapped = torch.compile(model) if job.runtime.compile else model
    prepared, prepared_optimizer = accelerator.prepare(wrapped, optimizer)
    predictor = Predictor(
        ema.model, info, device=accelerator.device, precision=job.runtime.precision, flip=job.evaluate.flip
    )

    def evaluate() -> dict[str, float]:
        metrics = compute_metrics(_predict(predictor, val_reader, val, job, accelerator), val.labels)
        return {"val_top1": metrics.top1, "val_nll": metrics.nll}

    trainer = Trainer(
        out=job.out,
        seed=job.seed,
        round=job.round,
        training=training,
        runtime=job.runtime,
        accelerator=accelerator,
        model=prepared,
        raw_model=model,
        optimizer=prepared_optimizer,
        ema=ema,
        batches=_batches(job, labeled, accelerator),
        views=Views(
            training.weak,
            training.strong,
            training.image_size,
            mean=training.mean,
            std=training.std,
            device=accelerator.device,
            key_coordinates=(job.seed, job.round),
        ),
        checkpoints=Checkpoints(job.out, stage.fingerprint, job.runtime.keep_checkpoints),
        evaluate=evaluate,
        stop=stop,
    )
    if training.start is not None and training.start.mode == "continue":
        continue_training(trainer, Path(training.start.model))
    return trainer


def read_size(training: Training) -> int:
    """The side at which training images are read: 8/7 of the view's for resized crops, which so have more pixels to
    sample than the view shows (256 for 224, the usual ratio)."""
    return round(training.image_size * 8 / 7) if training.weak.crop == "resized" else training.image_size


def _first_images(job: TrainJob, labeled: Dataset, info: ModelInfo) -> Tensor:
    """Labeled images from all over the data set, normalized: for data-dependent initialization."""
    rows = np.linspace(0, len(labeled) - 1, min(len(labeled), NUM_FIRST_IMAGES)).astype(np.int64)  # sorted by class
    images = torch.from_numpy(Reader(labeled, read_size(job.training), job.data).read(rows)).to(job.runtime.device)
    size = job.training.image_size
    views = Views(WeakView(), StrongView(), size, mean=info.mean, std=info.std, device=job.runtime.device)
    return views.center(images)


def _batches(job: TrainJob, labeled: Dataset, accelerator: Accelerator) -> Batches:
    training = job.training

    def stream(dataset: Dataset, name: str, batch_size: int, copies: np.ndarray | None) -> Stream:
        reader = Reader(dataset, read_size(training), job.data)
        order = Order(
            dataset.shard_starts,
            copies,
            seed=job.seed,
            stream=name,
            round=job.round,
            window_shards=job.data.window_shards,
        )
        return Stream(dataset, reader, order, batch_size)

    unlabeled = targets = None
    if job.selection is not None:
        unlabeled_set = open_split(job.data, "unlabeled")
        selection, targets = open_targets(job.selection, unlabeled_set)
        copies = np.zeros(len(unlabeled_set), selection.copies.dtype)
        copies[selection.rows] = selection.copies
        unlabeled = stream(unlabeled_set, "unlabeled", training.unlabeled_batch_size, copies)
    return Batches(
        stream(labeled, "labeled", training.batch_size, None),
        unlabeled,
        targets,
        num_classes=len(labeled.classes),
        label_smoothing=training.label_smoothing,
        accumulation=training.accumulation,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        pin=accelerator.device.type == "cuda",
    )


def _predict(predictor: Predictor, reader: Reader, val: Dataset, job: TrainJob, accelerator: Accelerator) -> np.ndarray:
    mine = predict(
        predictor,
        reader,
        len(val),
        job.evaluate.batch_size,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
    )
    if accelerator.num_processes == 1:
        return mine
    total = accelerator.reduce(torch.from_numpy(mine).to(accelerator.device), "sum")
    return cast(np.ndarray, total.cpu().numpy())


def _finish(
    job: TrainJob, stage: StageFolder, trainer: Trainer, val: Dataset, val_reader: Reader, info: ModelInfo
) -> None:
    predictor = Predictor(
        trainer.ema.model,
        info,
        device=trainer.accelerator.device,
        precision=job.runtime.precision,
        flip=job.evaluate.flip,
    )
    log_probs = _predict(predictor, val_reader, val, job, trainer.accelerator)
    labels = val.labels
    metrics = compute_metrics(log_probs, labels)
    if trainer.accelerator.is_main_process:
        write_json(job.out / "evaluation-val.json", metrics.to_json())
        write_predictions(job.out / "predictions-val.npz", log_probs, labels)
        info = info.model_copy(update={"metrics": {"val": metrics.to_json()}})
        save_model(job.out / "model.safetensors", trainer.ema.model.state_dict(), info)
        best_top1, best_step = trainer.best
        stage.finish(
            model_sha256=model_digest(job.out), steps=trainer.step, best_step=best_step, best_top1=max(best_top1, 0.0)
        )
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.end_training()


def write_predictions(path: Path, log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Label, prediction and confidence of every sample, for the report's calibration plots."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            label=labels.astype(np.int32),
            pred=log_probs.argmax(1).astype(np.int32),
            confidence=np.exp(log_probs.max(1)).astype(np.float32),
        )
