"""A run in progress: it runs stages in their folders and reads what they left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pipeline.config import Config, NetworkSettings, Split, Training, changed
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.methods.method import Method, Round
from pipeline.runs.ledger import Ledger
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import is_finished
from pipeline.stages.jobs import EvaluateJob, Job, LabelJob, Role, SelectJob, TrainJob
from pipeline.stages.kinds import fingerprint_of, kind_of

log = logging.getLogger("selftrain.loop")

RunStage = Callable[[Job, int], None]
"""It runs one stage to completion, or raises. The int is the file descriptor of the run lock, for child processes."""


@dataclass
class Run:
    """A run in progress: the resolved config, and how to run a stage in its folder. Methods see it as `Stages`."""

    config: Config
    folder: Path
    run_stage: RunStage
    lock_fd: int
    accept_environment: bool
    data: dict[Split, str]
    """Split -> its fingerprint when the run began."""
    ledger: Ledger

    @cached_property
    def num_classes(self) -> int:
        """The number of classes of the labeled split."""
        return len(open_split(self.config.data, "labeled").classes)

    def stage(self, job: Job, parent: str) -> Path:
        """Run a job in RUN/parent/KIND-FP8, or reuse the finished stage there; returns the folder.

        Raises:
            UserError: the data changed since the run began.
        """
        inputs = kind_of(job).inputs(job)
        for split in self.data:
            if split in inputs.inputs:
                self._check_unchanged(split, inputs.inputs[split])
        name = f"{job.kind}-{fingerprint_of(job, inputs)[:8]}"
        job = changed(job, out=self.folder / parent / name, accept_environment=self.accept_environment)
        self.ledger.add(job)
        if is_finished(job.out):
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

    def train(
        self,
        role: Role,
        round: int,
        training: Training,
        parent: str,
        *,
        method: Method | None = None,
        teacher: NetworkSettings | None = None,
        selection: Path | None = None,
        labels: Path | None = None,
    ) -> Path:
        """Run a train stage. Its learner is the method's; without a method it learns from labels and pseudo-labels."""
        whose: dict[str, Any] = {}
        if method is not None:
            whose = {"method": method.name, "learner": method.learner, "settings": method.settings(self.config)}
        inputs = {"teacher": teacher, "selection": selection, "labels": labels}
        return self.stage(TrainJob.of(self.config, self.folder, role, round, training, **whose, **inputs), parent)

    def label(self, round: int, teachers: Sequence[Path]) -> Path:
        """Run a label stage with these teachers, the newest first."""
        return self.stage(LabelJob.of(self.config, self.folder, round, teachers), f"rounds/{round}")

    def select(self, round: int, labels: Path) -> Path:
        """Run a select stage on the labels of a label stage."""
        return self.stage(SelectJob.of(self.config, self.folder, round, labels), f"rounds/{round}")

    def evaluate(self, split: Split, models: dict[str, Path]) -> dict[str, Any]:
        """Run an evaluate stage; returns {name: metrics}."""
        job = EvaluateJob.of(self.config, self.folder, split, models)
        self._check_unchanged(split, open_split(self.config.data, split).fingerprint)
        return cast(dict[str, Any], read_json(self.stage(job, ".") / f"{split}.json"))

    def judge(
        self, role: Role, round: int, train: Path, labels: Path | None = None, selection: Path | None = None
    ) -> Round:
        """The round of a finished training, with its figures on val; it is entered into the ledger."""
        metrics = read_json(train / "evaluation-val.json")
        low, high = metrics["interval"]
        info = read_json(train / "model.json")
        outputs = read_json(selection / "stage.json")["outputs"] if selection else {}
        self.ledger.add_model(train, role, round)
        return Round(
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
