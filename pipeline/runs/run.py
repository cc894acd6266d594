"""A run in progress: it runs stages in their folders and reads what they left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.config import Split, changed
from pipeline.errors import UserError
from pipeline.methods.method import Stages
from pipeline.runs.ledger import Ledger
from pipeline.shards.dataset import open_split
from pipeline.stages.folder import is_finished, read_output
from pipeline.stages.jobs import EvaluateJob, Job, Role
from pipeline.stages.kinds import folder_name, kind_of

log = logging.getLogger("selftrain.loop")

RunStage = Callable[[Job, int], None]
"""It runs one stage to completion, or raises. The int is the file descriptor of the run lock, for child processes."""
OnReuse = Callable[[Job], None]
"""It is called with the job of each stage that is finished already, in place of running it."""


@dataclass
class Run(Stages):
    """A run in progress, which runs each stage in its folder and keeps the ledger. Methods see it as `Stages`."""

    run_stage: RunStage
    lock_fd: int
    accept_environment: bool
    data: dict[Split, str]
    """Split -> its fingerprint when the run began."""
    files: dict[str, str]
    """Config key -> digest of what the run reads there beside its data."""
    ledger: Ledger
    on_reuse: OnReuse

    def stage(self, job: Job, parent: str) -> Path:
        """Run a job in RUN/parent/KIND-FP8, or reuse the finished stage there; returns the folder.

        Raises:
            UserError: the data changed since the run began.
        """
        inputs = kind_of(job).inputs(job)
        for split in self.data:
            if split in inputs.inputs:
                self._check_unchanged(split, inputs.inputs[split])
        job = changed(
            job, out=self.folder / parent / folder_name(job, inputs), accept_environment=self.accept_environment
        )
        self.ledger.add(job)
        if is_finished(job.out):
            log.info("%s is finished, reused", job.out)
            self.on_reuse(job)
        else:
            self.run_stage(job, self.lock_fd)
        return job.out

    def _check_unchanged(self, split: Split, now: str) -> None:
        if now != self.data[split]:
            raise UserError(
                f"the {split} split changed while the run was under way, so its rounds would not compare; pack "
                "between runs, and type the command again to begin anew with the data as it is"
            )

    def evaluate(self, split: Split, models: dict[str, Path], **values: Any) -> dict[str, Any]:
        """Run an evaluate stage; returns {name: metrics}. `values` are further fields of its job."""
        job = EvaluateJob.of(self.config, self.folder, split, models, **values)
        self._check_unchanged(split, open_split(self.config.data, split).fingerprint)
        return cast(dict[str, Any], read_output(self.stage(job, ".") / f"{split}.json"))

    def enter(self, train: Path, role: Role, round: int) -> None:
        """Enter a model into the ledger, if the stage that left it is not there for it."""
        self.ledger.add_model(train, role, round)
