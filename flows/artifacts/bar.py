"""The progress of one stage in the UI."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.artifacts.display import never_fatal
from flows.artifacts.keys import artifact_key
from pipeline.stages.progress import Progress

UPDATE_S = 5.0


class StageBar:
    """The progress bar of one stage of a run, updated every few seconds. Its first report belongs to the task that
    is under way."""

    def __init__(self, run_dir: Path, title: str) -> None:
        self._key = artifact_key(run_dir, title)
        self._id: UUID | None = None
        self._next_update = 0.0

    def show(self, progress: Progress) -> None:
        """Show a report, unless one was shown a moment ago. After a failure the stage's later reports are left out."""
        if time.monotonic() < self._next_update and not progress.done >= progress.total > 0:
            return
        self._next_update = float("inf")
        percent = 100 * progress.done / progress.total if progress.total else 0.0
        with never_fatal("update the progress"):
            if self._id is None:
                created = create_progress_artifact(percent, key=self._key, description=words(progress))
                self._id = cast(UUID, created)  # a coroutine only in async code
            else:
                update_progress_artifact(self._id, percent, description=words(progress))
            self._next_update = time.monotonic() + UPDATE_S


def words(progress: Progress) -> str:
    """A report in one line: stage, what is done of how much, the time left, and what the stage says itself."""
    done = f"{progress.stage}: {progress.done:,}/{progress.total:,} {progress.unit}"
    return ", ".join(filter(None, [done, progress.left, progress.text]))
