"""Which earlier stages a job reads: the edges between the tasks of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.stages.jobs import Job


def read_by(job: Job, folders: Iterable[Path]) -> list[Path]:
    """Those of these stage folders that a job names anywhere, or in which something lies that it names."""
    named = {Path(value) for value in _leaves(job.model_dump(exclude={"out"})) if isinstance(value, str | Path)}
    named |= {parent for path in named for parent in path.parents}
    return [folder for folder in folders if folder in named]


def _leaves(value: Any) -> Iterator[Any]:
    """All keys and values that hold no others."""
    if isinstance(value, Mapping):
        for each in value.items():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value
