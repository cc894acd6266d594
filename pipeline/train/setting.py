"""What surrounds the networks of one train or meta stage: data, devices, and how a model is judged and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from pipeline.config import Runtime, StrongView, Training, WeakView
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.predict import Predictor, predict, write_predictions
from pipeline.jobs import MetaJob, TrainJob
from pipeline.models import build
from pipeline.models.folder import ModelInfo, model_digest, save_model
from pipeline.randomness import key_of, reseed_torch
from pipeline.runtime import environment
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.order import Order
from pipeline.shards.read import Reader
from pipeline.stage import StageFolder, StageKind, open_stage, write_json
from pipeline.train.batches import Stream
from pipeline.train.network import Network, prepare
from pipeline.train.ranks import WAIT, Ranks
from pipeline.train.start import load_start
from pipeline.views import Views

NUM_FIRST_IMAGES = 1000


@dataclass(frozen=True)
class Setting:
    """One stage's surroundings."""

    job: TrainJob | MetaJob
    accelerator: Accelerator

    @cached_property
    def ranks(self) -> Ranks:
        """The ranks of this training; the first to ask must be all of them."""
        return Ranks()

    @cached_property
    def labeled(self) -> Dataset:
        """The labeled split."""
        return open_split(self.job.data, "labeled")

    @cached_property
    def val(self) -> Dataset:
        """The split that every choice is made on."""
        return open_split(self.job.data, "val")

    @cached_property
    def _val_readers(self) -> dict[int, Reader]:
        return {}

    def new_info(self, training: Training, **lineage: Any) -> ModelInfo:
        """The model.json of what a training makes."""
        return ModelInfo(
            schema=1,
            architecture=training.model,
            model_args=training.model_args,
            classes=self.labeled.classes,
            input_size=(3, training.image_size, training.image_size),
            mean=training.mean,
            std=training.std,
            metrics={},
            lineage={**lineage, "round": self.job.round, "seed": self.job.seed},
        )

    def network(self, training: Training, info: ModelInfo, *name: str) -> Network:
        """A network to be trained, from random weights or from `training.start`.

        Raises:
            UserError: the architecture or the start is not there or does not fit.
        """
        reseed_torch(key_of(self.job.seed, "init", self.job.round, *name))
        model = build(
            info.architecture,
            len(self.labeled.classes),
            dropout=training.dropout,
            stochastic_depth=training.stochastic_depth,
            model_args=info.model_args,
        ).to(device=self.accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if hasattr(model, "init_from_images"):
            model.init_from_images(self._first_images(training, info))
        load_start(model, training)
        return prepare(model, training, self.accelerator, self.ranks, compiled=self.job.runtime.compile)

    def _first_images(self, training: Training, info: ModelInfo) -> Tensor:
        """Labeled images from all over the data set, normalized: for data-dependent initialization."""
        num = len(self.labeled)
        rows = np.linspace(0, num - 1, min(num, NUM_FIRST_IMAGES)).astype(np.int64)  # sorted by class
        reader = Reader(self.labeled, read_size(training), self.job.data)
        images = torch.from_numpy(reader.read(rows)).to(self.job.runtime.device)
        size, device = training.image_size, self.job.runtime.device
        return Views(WeakView(), StrongView(), size, mean=info.mean, std=info.std, device=device).center(images)

    def views(self, training: Training) -> Views:
        """The views of a training's images."""
        return Views(
            training.weak,
            training.strong,
            training.image_size,
            mean=training.mean,
            std=training.std,
            device=self.accelerator.device,
            key_coordinates=(self.job.seed, self.job.round),
        )

    def stream(
        self, dataset: Dataset, name: str, training: Training, batch_size: int, copies: np.ndarray | None = None
    ) -> Stream:
        """An endless stream of a data set's rows, each as often an epoch as `copies` says."""
        reader = Reader(dataset, read_size(training), self.job.data)
        order = Order(
            dataset.shard_starts,
            copies,
            seed=self.job.seed,
            stream=name,
            round=self.job.round,
            window_shards=self.job.data.window_shards,
        )
        return Stream(dataset, reader, order, batch_size)

    def predict_val(self, model: nn.Module, info: ModelInfo) -> np.ndarray:
        """Log-probabilities [N, C] on val, shared by the ranks."""
        job, accelerator, size = self.job, self.accelerator, info.input_size[-1]
        if size not in self._val_readers:
            self._val_readers[size] = Reader(self.val, size, job.data)
        precision, flip = job.runtime.precision, job.evaluate.flip
        mine = predict(
            Predictor(model, info, device=accelerator.device, precision=precision, flip=flip),
            self._val_readers[size],
            len(self.val),
            job.evaluate.batch_size,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        if accelerator.num_processes == 1:
            return mine
        total = accelerator.reduce(torch.from_numpy(mine).to(accelerator.device), "sum")
        return cast(np.ndarray, total.cpu().numpy())

    def evaluate(self, model: nn.Module, info: ModelInfo) -> dict[str, float]:
        """Figures on val as metrics.jsonl has them."""
        metrics = compute_metrics(self.predict_val(model, info), self.val.labels)
        return {"val_top1": metrics.top1, "val_nll": metrics.nll}

    def write(self, out: Path, model: nn.Module, info: ModelInfo) -> str:
        """Judge a model on val and write it into a stage folder; returns its digest. Only the main process writes."""
        log_probs = self.predict_val(model, info)
        if not self.accelerator.is_main_process:
            return ""
        metrics = compute_metrics(log_probs, self.val.labels)
        write_json(out / "evaluation-val.json", metrics.to_json())
        write_predictions(out / "predictions-val.npz", log_probs, self.val.labels)
        info = info.model_copy(update={"metrics": {"val": metrics.to_json()}})
        save_model(out / "model.safetensors", model.state_dict(), info)
        return model_digest(out)

    def end(self) -> None:
        """Wait for every rank, and let go of each other."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.num_processes > 1:
            self.accelerator.end_training()


def open_setting(
    job: TrainJob | MetaJob, kind: StageKind, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[Setting, StageFolder]:
    """Threads, devices and the stage's folder, on every rank.

    Raises:
        UserError: the folder holds another stage's output, or was begun in another environment.
    """
    torch.set_num_threads(max(job.runtime.threads, 1))
    env = environment(job.runtime)
    setting = Setting(job, make_accelerator(job.runtime))
    with setting.accelerator.main_process_first():
        stage = open_stage(job.out, kind, config, inputs, env, accept_environment=job.accept_environment)
    return setting, stage


def make_accelerator(runtime: Runtime) -> Accelerator:
    """Accelerate, for the device and precision that a run was resolved to."""
    precision = {"fp32": "no"}.get(runtime.precision, runtime.precision)
    # DDP would copy rank 0's BatchNorm statistics to the others before each step, which the loop has averaged already.
    handlers = [InitProcessGroupKwargs(timeout=WAIT), DistributedDataParallelKwargs(broadcast_buffers=False)]
    return Accelerator(cpu=runtime.device == "cpu", mixed_precision=precision, kwargs_handlers=handlers)


def read_size(training: Training) -> int:
    """The side at which training images are read: 8/7 of the view's for resized crops, which so have more pixels to
    sample than the view shows (256 for 224, the usual ratio)."""
    return round(training.image_size * 8 / 7) if training.weak.crop == "resized" else training.image_size
