"""The frame of every stage, in the process that runs it: inputs, threads, ranks, folder, function, record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """An open stage: its folder, its fingerprint, and its processes."""

    path: Path
    fingerprint: str
    inputs: StageInputs
    stop: StopRequest
    ranks: Ranks

    def finish(self, files: Sequence[str], **outputs: Json) -> None:
        """Mark the folder complete. It is the last call of a stage's function, on every rank.

        Args:
            files: The names of the files without which the folder cannot be reused.
            outputs: Values for later stages and for people, which are written into stage.json.
        """
        self._record(files, outputs, complete=True)

    def leave(self, files: Sequence[str], **outputs: Json) -> None:
        """Record what a part leaves for its stage, in a folder that stays unfinished; in place of `finish`."""
        self._record(files, outputs, complete=False)

    def _record(self, files: Sequence[str], outputs: Mapping[str, Json], *, complete: bool) -> None:
        self.ranks.wait()
        if self.ranks.is_main:
            finish_folder(self.path, files, complete=complete, **outputs)

    def check_stop(self, what: str) -> None:
        """Raise Interrupted if a stop was requested; `what` says where the stage stops, and what is saved."""
        if self.stop.requested:
            raise Interrupted(f"stopped {what}")


def run_stage(job: Job) -> None:
    """Run a stage in this process to its end. A begun stage is resumed, and for a finished one nothing is done.

    Raises:
        UserError: the data, the config or the folder is bad.
        Interrupted: a signal stopped it; the message says what is saved.
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
        complete = open_folder(
            job.out,
            job.kind,
            kind.version,
            inputs,
            env,
            accept_environment=job.accept_environment,
            shared_with=job.shared_with,
        )
    if not complete:
        kind.run(job, Stage(job.out, fingerprint_of(job, inputs), inputs, stop, ranks))
    ranks.leave()
