"""The meta stage: from labeled and unlabeled images to a student and its teacher, or to a UDA teacher alone."""

from __future__ import annotations

from typing import Any

from pipeline.config import Select, Split, Training, semantic
from pipeline.jobs import MetaJob
from pipeline.labels.store import LabelStore
from pipeline.labels.targets import Targets
from pipeline.models.adjuster import Adjuster
from pipeline.randomness import key_of, reseed_torch
from pipeline.runtime import environment
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stage import StageFolder, open_stage, stage_record
from pipeline.train.batches import Batches
from pipeline.train.checkpoint import Checkpoints
from pipeline.train.interrupt import StopRequest
from pipeline.train.meta_trainer import MetaTrainer
from pipeline.train.network import Network, prepare
from pipeline.train.setting import Setting, open_setting
from pipeline.train.start import semantic_training

TEACHER = "teacher"
"""The folder of a meta stage in which its teacher is a stage of its own."""


def meta_inputs(job: MetaJob) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's output is a function of: its semantic config and the fingerprints of its inputs."""
    config: dict[str, Any] = {
        "seed": job.seed,
        "round": job.round,
        "training": semantic_training(job.student or job.teacher),
        "teacher": semantic_training(job.teacher),
        "meta": semantic(job.meta),
        "data": semantic(job.data),
        "flip": job.evaluate.flip,
        "eval_batch_size": job.evaluate.batch_size,
        "precision": job.runtime.precision,
        "compile": job.runtime.compile,
    }
    splits: tuple[Split, ...] = ("labeled", "unlabeled", "val")
    inputs: dict[str, str] = {split: open_split(job.data, split).fingerprint for split in splits}
    if job.labels is not None:
        inputs["labels"] = stage_record(job.labels)["fingerprint"]
    return config, inputs


def run_meta(job: MetaJob) -> None:
    """Train teacher and student together; resumes where it was killed.

    Raises:
        UserError: bad data or config; a loss that is not finite.
        Interrupted: stopped by a signal, with everything saved.
    """
    stop = StopRequest()
    config, inputs = meta_inputs(job)
    setting, stage = open_setting(job, "meta", config, inputs)
    if stage.complete:
        return
    trainer = _set_up(job, stage, setting, stop)
    trainer.resume()
    trainer.train()
    if trainer.training.keep == "best":
        trainer.ema.load_state_dict(trainer.checkpoints.load_best()["ema"])
    if trainer.student is not None and job.meta.teacher == "network":
        _write_teacher(job, setting, trainer.teacher, config, inputs)
    role = "student" if trainer.student is not None else "teacher"
    info = setting.new_info(trainer.training, role=role, **inputs)
    model_sha256 = setting.write(job.out, trainer.ema, info)
    if setting.accelerator.is_main_process:
        best_top1, best_step = trainer.best
        stage.finish(model_sha256=model_sha256, steps=trainer.step, best_step=best_step, best_top1=best_top1)
    setting.end()


def _write_teacher(
    job: MetaJob, setting: Setting, teacher: Network, config: dict[str, Any], inputs: dict[str, str]
) -> None:
    """The teacher as a train stage of its own, which whatever takes a model can read."""
    info = setting.new_info(job.teacher, role="teacher", **inputs)
    if not setting.accelerator.is_main_process:
        setting.predict_val(teacher.ema.model, info)  # its share of the evaluation
        return
    out = job.out / TEACHER
    config = {**config, "training": config["teacher"], "student": config["training"]}
    env = environment(job.runtime)
    stage = open_stage(out, "train", config, inputs, env, accept_environment=job.accept_environment)
    sha256 = setting.write(out, teacher.ema.model, info)
    if not stage.complete:
        stage.finish(model_sha256=sha256, steps=job.teacher.steps)


def _set_up(job: MetaJob, stage: StageFolder, setting: Setting, stop: StopRequest) -> MetaTrainer:
    training = job.student or job.teacher
    info = setting.new_info(training)
    unlabeled = open_split(job.data, "unlabeled")
    teacher = _adjuster(job, setting) if job.meta.teacher == "adjuster" else _network(job.teacher, setting, "teacher")
    student = _network(job.student, setting, "student") if job.student is not None else None

    def evaluate() -> dict[str, float]:
        values = setting.evaluate((student or teacher).ema.model, info)
        if student is not None and job.meta.teacher == "network":
            of_teacher = setting.evaluate(teacher.ema.model, setting.new_info(job.teacher))
            values["teacher_val_top1"] = of_teacher["val_top1"]
        return values

    return MetaTrainer(
        out=job.out,
        seed=job.seed,
        round=job.round,
        training=training,
        runtime=job.runtime,
        accelerator=setting.accelerator,
        ranks=setting.ranks,
        meta=job.meta,
        teacher=teacher,
        student=student,
        batches=_batches(job, training, setting, unlabeled),
        views=setting.views(training),
        checkpoints=Checkpoints(job.out, stage.fingerprint, job.runtime.keep_checkpoints),
        evaluate=evaluate,
        stop=stop,
    )


def _network(training: Training, setting: Setting, name: str) -> Network:
    """Teacher and student begin with weights of their own."""
    return setting.network(training, setting.new_info(training), name)


def _adjuster(job: MetaJob, setting: Setting) -> Network:
    reseed_torch(key_of(job.seed, "init", job.round, "adjuster"))
    model = Adjuster(len(setting.labeled.classes), job.meta.adjuster.hidden).to(setting.accelerator.device)
    training = job.teacher.model_copy(
        update={
            "optimizer": job.meta.adjuster.optimizer,
            "clip_norm": 0.0,
            "frozen_layers": 0,
        }
    )
    return prepare(model, training, setting.accelerator, setting.ranks)


def _batches(job: MetaJob, training: Training, setting: Setting, unlabeled: Dataset) -> Batches:
    accelerator = setting.accelerator
    stored = Targets(LabelStore(job.labels, unlabeled), Select(targets="soft")) if job.labels is not None else None
    return Batches(
        setting.stream(setting.labeled, "labeled", training, training.batch_size),
        setting.stream(unlabeled, "unlabeled", training, training.unlabeled_batch_size),
        stored,
        num_classes=len(setting.labeled.classes),
        label_smoothing=0.0,  # of hard pseudo-labels, which there are none of
        accumulation=1,
        rank=accelerator.process_index,
        num_ranks=accelerator.num_processes,
        pin=accelerator.device.type == "cuda",
    )
