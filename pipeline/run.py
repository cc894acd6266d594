"""A run in progress: its stages by the folders that they fill, and what they came to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.config import Config, Split, Training
from pipeline.errors import UserError
from pipeline.jobs import EvaluateJob, Job, LabelJob, MetaJob, MoonsJob, Role, SelectJob, TrainJob
from pipeline.stage import fingerprint, read_json

log = logging.getLogger("selftrain.loop")

RunStage = Callable[[Job, int], None]
"""Runs one stage to completion, or raises. The int is the run lock's file descriptor, for child processes."""


@dataclass(frozen=True)
class RoundReport:
    """One trained model of the run, as result.json and the artifacts show it."""

    round: int
    role: Role
    model: str
    val_top1: float
    interval: tuple[float, float]
    """Wilson 95% interval of val_top1."""
    num_selected: int | None
    """Distinct pseudo-labeled images it trained on; None for a supervised model."""
    kept: bool
    """Whether it became the next teacher."""
    train: Path
    label: Path | None
    select: Path | None

    def to_json(self, run_dir: Path) -> dict[str, Any]:
        """As an entry of result.json's `rounds`, with paths relative to the run folder."""
        entry = {**asdict(self), "interval": list(self.interval)}
        for name in ("train", "label", "select"):
            path: Path | None = entry.pop(name)
            entry[f"{name}_dir"] = str(path.relative_to(run_dir)) if path else None
        return entry


@dataclass
class Run:
    """A run in progress: the resolved config, and how to run a stage in its folder."""

    config: Config
    folder: Path
    run_stage: RunStage
    lock_fd: int
    accept_environment: bool
    data: dict[Split, str]
    """Fingerprint of each split when the run began."""

    def stage(self, job: Job, inputs: tuple[dict[str, Any], dict[str, str]], parent: str) -> Path:
        """Run a job in RUN/parent/KIND-FP8, or reuse it if it is there, finished."""
        for split in self.data:
            if split in inputs[1]:
                self._check_unchanged(split, inputs[1][split])
        name = f"{job.kind}-{fingerprint(job.kind, *inputs)[:8]}"
        job = job.model_copy(update={"out": self.folder / parent / name})
        if _is_finished(job):
            log.info("%s is finished, reused", job.out)
        else:
            self.run_stage(job, self.lock_fd)
        return job.out

    def _check_unchanged(self, split: Split, now: str) -> None:
        if now != self.data[split]:
            raise UserError(
                f"the {split} split changed while the run was under way, so its rounds would not compare; pack "
                "between runs, and type the command again to begin anew with the data as it is"
            )

    def train(self, role: Role, round: int, training: Training, selection: Path | None, parent: str) -> Path:
        """A train stage."""
        from pipeline.train.stage import train_inputs

        job = TrainJob(
            out=self.folder,
            role=role,
            round=round,
            seed=self.config.seed,
            data=self.config.data,
            training=training,
            evaluate=self.config.evaluate,
            runtime=self.config.runtime,
            selection=selection,
            accept_environment=self.accept_environment,
        )
        return self.stage(job, train_inputs(job), parent)

    def train_meta(self, teacher: Training, student: Training | None, labels: Path | None = None) -> Path:
        """A meta stage: round 1's, or round 0's of a UDA teacher alone, which draws what it would beside a student."""
        from pipeline.train.meta_stage import meta_inputs

        job = MetaJob(
            out=self.folder,
            round=1,
            seed=self.config.seed,
            data=self.config.data,
            teacher=teacher,
            student=student,
            meta=self.config.meta.without_unread(with_student=student is not None),
            evaluate=self.config.evaluate,
            runtime=self.config.runtime,
            labels=labels,
            accept_environment=self.accept_environment,
        )
        return self.stage(job, meta_inputs(job), f"rounds/{1 if student is not None else 0}")

    def two_moons(self) -> dict[str, Any]:
        """The moons stage; returns its figures, and where its picture is."""
        from pipeline.moons.stage import PICTURE, RESULT, moons_inputs

        job = MoonsJob(
            out=self.folder,
            seed=self.config.seed,
            data=self.config.data,
            two_moons=self.config.two_moons,
            runtime=self.config.runtime,
            accept_environment=self.accept_environment,
        )
        folder = self.stage(job, moons_inputs(job), ".")
        return {**read_json(folder / RESULT), "picture": str((folder / PICTURE).relative_to(self.folder))}

    def label(self, round: int, teachers: list[Path]) -> Path:
        """A label stage."""
        from pipeline.labels.predict import label_inputs

        job = LabelJob(
            out=self.folder,
            round=round,
            data=self.config.data,
            label=self.config.for_round(round).label,
            runtime=self.config.runtime,
            teachers=tuple(teachers[: self.config.for_round(round).label.ensemble]),
            accept_environment=self.accept_environment,
        )
        return self.stage(job, label_inputs(job), f"rounds/{round}")

    def select(self, round: int, labels: Path) -> Path:
        """A select stage."""
        from pipeline.labels.select import select_inputs

        job = SelectJob(
            out=self.folder,
            round=round,
            seed=self.config.seed,
            data=self.config.data,
            select=self.config.for_round(round).select,
            labels=labels,
            accept_environment=self.accept_environment,
        )
        return self.stage(job, select_inputs(job), f"rounds/{round}")

    def evaluate(self, split: Split, models: dict[str, Path]) -> dict[str, Any]:
        """An evaluate stage; returns {name: metrics}."""
        from pipeline.evaluate.stage import evaluate_inputs

        job = EvaluateJob(
            out=self.folder,
            data=self.config.data,
            split=split,
            models=models,
            evaluate=self.config.evaluate,
            runtime=self.config.runtime,
            accept_environment=self.accept_environment,
        )
        inputs = evaluate_inputs(job)
        self._check_unchanged(split, inputs[1]["data"])
        return cast(dict[str, Any], read_json(self.stage(job, inputs, ".") / f"{split}.json"))

    def report(
        self, role: Role, round: int, train: Path, labels: Path | None = None, selection: Path | None = None
    ) -> RoundReport:
        """What a finished training came to."""
        metrics = read_json(train / "evaluation-val.json")
        low, high = metrics["interval"]
        info = read_json(train / "model.json")
        outputs = read_json(selection / "stage.json")["outputs"] if selection else {}
        return RoundReport(
            round=round,
            role=role,
            model=info["architecture"],
            val_top1=metrics["top1"],
            interval=(low, high),
            num_selected=outputs.get("num_selected"),
            kept=True,
            train=train,
            label=labels,
            select=selection,
        )


def _is_finished(job: Job) -> bool:
    record = job.out / "stage.json"
    if not record.exists() or not read_json(record)["complete"]:
        return False
    if isinstance(job, LabelJob):
        from pipeline.labels.predict import missing_labels

        return not missing_labels(job)
    return True


def best_of(rounds: list[RoundReport]) -> RoundReport:
    """The best on val, the earliest on ties."""
    return max(rounds, key=lambda r: (r.val_top1, -r.round))
