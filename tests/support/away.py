"""Machines that fill one stage at an address: processes with a folder and a cache of their own, which may be killed."""

from __future__ import annotations

import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.config import changed
from pipeline.labels import stage as labels_stage
from pipeline.remote import Remote
from pipeline.stages import away
from pipeline.stages.child import guarded
from pipeline.stages.jobs import LabelJob
from pipeline.stages.kinds import folder_name
from pipeline.stages.part import Part
from pipeline.stages.preamble import run_stage
from pipeline.stages.progress import Progress
from support.object_store import ObjectStore
from support.processes import _FORKS


def machine(
    job: LabelJob, cache: Path, address: Remote, store: ObjectStore, part: Part | None = None, dies_after: int = 0
) -> BaseProcess:
    """Label at an address on a machine that has this cache.

    The stage's process and its parent are one, so that the store is written after each shard. It dies by SIGKILL as
    soon as it has stored so many files. It notes each shard that it labels in the file `labeled` of its cache.
    """
    process = _FORKS.Process(target=_fill, args=(job, cache, address, store.variables, part, dies_after))
    process.start()
    return process


def _fill(
    job: LabelJob, cache: Path, address: Remote, variables: dict[str, str], part: Part | None, dies_after: int
) -> None:
    os.environ |= {**variables, "ACCELERATE_USE_CPU": "true"}
    cache.mkdir(exist_ok=True)
    label, write, left = labels_stage._label_shard, Remote.write, [dies_after]

    def noting(job: LabelJob, stage: Any, dataset: Any, shard: Any, committee: Any) -> Any:
        with open(cache / "labeled", "a") as file:
            file.write(f"{shard.name}\n")
        return label(job, stage, dataset, shard, committee)

    def dying(self: Remote, source: Path) -> None:
        write(self, source)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def here(job: LabelJob, *, lock_fd: int, on_progress: Any) -> None:
        def report(*arguments: Any) -> None:
            on_progress(Progress("label", 0, 1, "images", ""))

        labels_stage.progress = SimpleNamespace(report=report)  # type: ignore[attr-defined]
        run_stage(job)

    labels_stage._label_shard, Remote.write, away.run_job = noting, dying, here  # type: ignore[assignment, method-assign]
    away._AT_ONCE = 1
    whole = away.work_folder(cache, address, folder_name(job))
    job = changed(job, out=whole)
    own = job.of_part(part) if part else job

    def fill() -> int:
        away.run_away(own, whole, address, lambda _: None)
        return 0

    raise SystemExit(guarded(fill, cache))


def labeled(cache: Path) -> list[str]:
    """The shards that a machine has labeled."""
    return (cache / "labeled").read_text().split() if (cache / "labeled").exists() else []
