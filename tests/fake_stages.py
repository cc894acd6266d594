"""Stages that take no time, in real folders: what tests of the loop run in the place of trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.train.meta_stage import TEACHER, meta_inputs

from pipeline.config import Config, Training
from pipeline.evaluate.metrics import wilson_interval
from pipeline.evaluate.stage import evaluate_inputs
from pipeline.files import write_bytes, write_json
from pipeline.labels.stage import label_inputs
from pipeline.labels.store import label_path
from pipeline.models.format import ModelInfo
from pipeline.selection.stage import select_inputs
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import StageFolder, open_stage
from pipeline.stages.jobs import Job, LabelJob, MetaJob, SelectJob, TrainJob
from pipeline.train.stage import train_inputs

NUM_VAL = 359


class FakeStages:
    """Stages that take no time; `val` is the accuracy of the model of each round."""

    def __init__(self, *val: float, finetune: float = 0.0) -> None:
        self.val = val
        self.finetune = finetune
        self.jobs: list[Job] = []

    def __call__(self, job: Job, lock_fd: int) -> None:
        self.jobs.append(job)
        if isinstance(job, TrainJob):
            self.train(job)
        elif isinstance(job, MetaJob):
            self.train_meta(job)
        elif isinstance(job, LabelJob):
            stage = open_stage(job.out, "label", *label_inputs(job), env={})
            for shard in open_split(job.data, "unlabeled").shards:
                write_bytes(label_path(job.out, shard.name), b"rows")
            stage.finish(num_samples=889)
        elif isinstance(job, SelectJob):
            open_stage(job.out, "select", *select_inputs(job), env={}).finish(num_selected=100 * job.round)
        else:
            stage = open_stage(job.out, "evaluate", *evaluate_inputs(job), env={})
            write_json(job.out / "test.json", {name: self.metrics(0.7 + len(name) / 100) for name in job.models})
            stage.finish()

    def train(self, job: TrainJob) -> None:
        stage = open_stage(job.out, "train", *train_inputs(job), env={})
        val = self.finetune if job.out.parent.name == "control" or job.role == "finetune" else self.val[job.round]
        self.write(stage, job, job.training, val)

    def train_meta(self, job: MetaJob) -> None:
        stage = open_stage(job.out, "meta", *meta_inputs(job), env={})
        if job.student is not None:
            teacher = open_stage(job.out / TEACHER, "train", *meta_inputs(job), env={})
            self.write(teacher, job, job.teacher, self.val[0])
        self.write(stage, job, job.student or job.teacher, self.val[-1])

    def write(self, stage: StageFolder, job: TrainJob | MetaJob, training: Training, val: float) -> None:
        """A model that has `val` on val."""
        out = stage.path
        write_json(out / "evaluation-val.json", self.metrics(val))
        values = {name: getattr(training, name) for name in ("model_args", "mean", "std")}
        info = ModelInfo(
            schema=1,
            architecture=training.model,
            classes=open_split(job.data, "labeled").classes,
            input_size=(3, training.image_size, training.image_size),
            metrics={},
            lineage={},
            **values,
        )
        write_json(out / "model.json", info.model_dump(mode="json", by_alias=True))
        write_bytes(out / "model.safetensors", stage.fingerprint.encode())
        stage.finish(steps=training.steps)

    @staticmethod
    def metrics(top1: float) -> dict[str, Any]:
        return {"top1": top1, "interval": list(wilson_interval(round(top1 * NUM_VAL), NUM_VAL))}

    def of(self, kind: str, role: str | None = None) -> list[Any]:
        return [job for job in self.jobs if job.kind == kind and getattr(job, "role", None) == role]


Loop = Callable[..., dict[str, Any]]


def changed(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
