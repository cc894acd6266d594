"""How every stage begins and ends, in the process that runs it: threads, ranks, folder, the kind's function, record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Interrupted
from pipeline.files import Json
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import finish_folder, open_folder
from pipeline.stages.interrupt import StopRequest
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import fingerprint_of, kind_of
from pipeline.stages.machine import environment
from pipeline.stages.ranks import Ranks


@dataclass(frozen=True)
class Stage:
    """An open stage: its folder, and what its function needs to know of its processes."""

    path: Path
    fingerprint: str
    inputs: StageInputs
    stop: StopRequest
    ranks: Ranks

    def finish(self, files: Sequence[str], **outputs: Json) -> None:
        """Mark the folder complete. The last call of a stage's function, on every rank.

        Args:
            files: Names of the files in the folder without which it cannot be reused.
            outputs: What later stages and people want to know; it is written into stage.json.
        """
        self.ranks.wait()
        if self.ranks.is_main:
            finish_folder(self.path, files, **outputs)

    def check_stop(self, what: str) -> None:
        """Raise Interrupted if a stop was requested; `what` says where, and what is saved."""
        if self.stop.requested:
            raise Interrupted(f"stopped {what}")


def run_stage(job: Job) -> None:
    """Run a stage in this process to its end; resumes what was begun, and returns at once if it is finished.

    Raises:
        UserError: bad data, config or folder.
        Interrupted: stopped by a signal; what the stage says is saved.
    """
    kind = kind_of(job)
    stop = StopRequest(listen=kind.process)  # before the slow imports
    inputs = kind.inputs(job)
    if kind.process:
        import torch

        torch.set_num_threads(max(job.runtime.threads, 1))
    ranks = Ranks.join(job.runtime.device) if kind.ranks else Ranks()
    env = environment(job.runtime) if kind.process else environment()
    with ranks.main_first():
        complete = open_folder(job.out, job.kind, kind.version, inputs, env, accept_environment=job.accept_environment)
    if not complete:
        kind.run(job, Stage(job.out, fingerprint_of(job, inputs), inputs, stop, ranks))
    ranks.leave()
