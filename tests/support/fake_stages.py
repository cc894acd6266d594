"""Stages that take no time, in real folders: what tests of the loop run in the place of trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, NetworkSettings, changed
from pipeline.evaluate.metrics import Metrics, wilson_interval
from pipeline.files import write_bytes, write_json
from pipeline.labels.store import label_path
from pipeline.models.format import ModelInfo
from pipeline.selection.selection import SELECTION_FILES
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import finish_folder, open_folder
from pipeline.stages.jobs import EvaluateJob, Job, LabelJob, MergeJob, SelectJob, TrainJob
from pipeline.stages.kinds import kind_of

NUM_VAL = 359
MODEL = ("model.safetensors", "model.json", "evaluation-val.json", "predictions-val.npz")


class FakeStages:
    """Stages that take no time; `val` is the accuracy of the model of each round. If `shuffled`, models err on images
    of their own; else what a model knows, a better one knows too."""

    def __init__(self, *val: float, finetune: float = 0.0, shuffled: bool = False) -> None:
        self.val = val
        self.finetune = finetune
        self.shuffled = shuffled
        self.jobs: list[Job] = []

    def __call__(self, job: Job, lock_fd: int) -> None:
        self.jobs.append(job)
        kind = kind_of(job)
        open_folder(job.out, job.kind, kind.version, kind.inputs(job), {})
        if isinstance(job, TrainJob):
            self.train(job)
        elif isinstance(job, LabelJob | MergeJob):
            names = [label_path(job.out, shard.name).name for shard in open_split(job.data, "unlabeled").shards]
            for name in names:
                write_bytes(job.out / name, b"rows")
            finish_folder(job.out, names, num_samples=889)
        elif isinstance(job, SelectJob):
            for name in SELECTION_FILES:
                write_bytes(job.out / name, b"rows")
            finish_folder(job.out, SELECTION_FILES, num_selected=100 * job.round)
        elif isinstance(job, EvaluateJob):
            more = [*(["ensemble"] if job.ensemble else []), *(["mc_dropout"] if job.sampled else [])]
            found = {name: self.metrics(0.7 + len(name) / 100) for name in (*job.models, *more)}
            write_json(job.out / f"{job.split}.json", found)
            finish_folder(job.out, [f"{job.split}.json"])

    def train(self, job: TrainJob) -> None:
        is_last = job.out.parent.name == "control" or job.role == "finetune"
        val = self.finetune if is_last else self.val[min(job.round, len(self.val) - 1)]
        if job.teacher is not None:
            kind = kind_of(job)
            open_folder(job.out / "teacher", "train", kind.version, kind.inputs(job), {})
            self.write(job.out / "teacher", job, job.teacher, self.val[0])
        self.write(job.out, job, job.training, val)

    def write(self, out: Path, job: TrainJob, settings: NetworkSettings, val: float) -> None:
        """A model that has `val` on val."""
        training = job.training
        write_json(out / "evaluation-val.json", self.metrics(val))
        pred = (np.arange(NUM_VAL) >= round(val * NUM_VAL)).astype(np.int32)  # of two models the better is never worse
        if self.shuffled:
            np.random.default_rng(round(1000 * val)).shuffle(pred)
        zeros = np.zeros(NUM_VAL, np.int32)
        np.savez(out / "predictions-val.npz", label=zeros, pred=pred, confidence=zeros.astype(np.float32))
        info = ModelInfo(
            schema=1,
            architecture=settings.model,
            model_args=settings.model_args,
            classes=open_split(job.data, "labeled").classes,
            input_size=(3, training.image_size, training.image_size),
            mean=training.mean,
            std=training.std,
            metrics={},
            lineage={},
        )
        write_json(out / "model.json", info.model_dump(mode="json", by_alias=True))
        write_bytes(out / "model.safetensors", f"{out.parent.name}/{out.name}".encode())
        finish_folder(out, MODEL, steps=training.steps)

    @staticmethod
    def metrics(top1: float) -> dict[str, Any]:
        interval = wilson_interval(round(top1 * NUM_VAL), NUM_VAL)
        return Metrics(top1, top5=1.0, nll=0.5, ece=0.1, num_samples=NUM_VAL, interval=interval).to_json()

    def of(self, kind: str, role: str | None = None) -> list[Any]:
        return [job for job in self.jobs if job.kind == kind and getattr(job, "role", None) == role]


Loop = Callable[..., dict[str, Any]]


def with_section(config: Config, section: str, **values: object) -> Config:
    """The config with other values in one section, checked as if a file said so."""
    return changed(config, **{section: changed(getattr(config, section), **values)})
