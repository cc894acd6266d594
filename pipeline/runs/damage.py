"""What is damaged in a run folder, or in the folder of one stage: every byte against the digests that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_as
from pipeline.models.checkpoints import check_checkpoint
from pipeline.runs.folder import earlier_config
from pipeline.runs.ledger import FILE as LEDGER
from pipeline.runs.ledger import read_ledger
from pipeline.runs.result import Result
from pipeline.stages.folder import METRICS, RECORD, check_output, read_record


@dataclass(frozen=True)
class DamageReport:
    """What a check of a folder found."""

    problems: tuple[str, ...]
    """What is damaged or gone, each with what to delete."""
    num_files: int
    """How many files were compared with a digest."""
    unchecked: tuple[Path, ...]
    """Stages that recorded no digests: those that are not finished, and those of an earlier version."""


def find_damage(folder: Path, progress: Callable[[int, int], None] | None = None) -> DamageReport:
    """Read every output, checkpoint and record below a folder in full."""
    stages = sorted(path.parent for path in folder.rglob(RECORD))
    checks, unchecked, problems = list(_of_run(folder)), [], []
    for stage in stages:
        checks += [partial(check_checkpoint, path) for path in sorted((stage / "checkpoints").glob("*.pt"))]
        try:
            outputs = sorted(read_record(stage).get("digests", {}))
        except UserError as error:
            problems.append(str(error))
            continue
        checks += [partial(_check_there, stage / name) for name in outputs]
        if not outputs:
            unchecked.append(stage)
    for done, check in enumerate(checks, start=1):
        try:
            check()
        except UserError as error:
            problems.append(str(error))
        if progress:
            progress(done, len(checks))
    return DamageReport(tuple(problems), len(checks), tuple(unchecked))


def _of_run(folder: Path) -> Iterator[Callable[[], object]]:
    """The checks of a run folder's own files."""
    if (folder / "result.json").exists():
        yield partial(read_as, Result, folder / "result.json")
    if (folder / LEDGER).exists():
        yield partial(read_ledger, folder)
        yield partial(earlier_config, folder)


def _check_there(path: Path) -> None:
    if not check_output(path).exists() and path.name != METRICS:
        raise UserError(f"{path} is gone; type the command that made it again, which makes it anew")
