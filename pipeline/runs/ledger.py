"""The ledger of a run, RUN/stages.json: the stages that it asked for, in order, and the purpose of each.

It tells the report of an unfinished run which stages belong to the run, and which other settings left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.config import Section, parse
from pipeline.files import read_as, write_sealed
from pipeline.stages.jobs import Job, Role

FILE = "stages.json"


class Entry(Section):
    """One stage of the ledger."""

    kind: str
    folder: Path
    """The stage folder, relative to the run folder."""
    role: Role | None = None
    """The role of a training; None for other kinds of stages."""
    round: int | None = None


class _Ledger(TypedDict):
    purpose: str
    stages: list[dict[str, Any]]


class Ledger:
    """The stages that a run asked for so far.

    Args:
        run_dir: The run folder.
        purpose: A digest of config, data and stage versions. With the same purpose, a command goes along the entries
            that are there and adds to them; with another, the ledger begins anew.
    """

    def __init__(self, run_dir: Path, purpose: str) -> None:
        self.run_dir, self.purpose = run_dir, purpose
        path = run_dir / FILE
        same = path.exists() and read_as(_Ledger, path)["purpose"] == purpose
        self.entries: list[Entry] = read_ledger(run_dir) if same else []
        self.num_passed = 0
        self._write()

    def add(self, job: Job) -> None:
        """Enter a stage before it runs."""
        self._add(job.kind, job.out, getattr(job, "role", None), getattr(job, "round", None))

    def add_model(self, folder: Path, role: Role, round: int) -> None:
        """Enter a model that a stage left beside its own, such as a teacher that was trained along."""
        self._add("train", folder, role, round)

    def _add(self, kind: str, folder: Path, role: Role | None, round: int | None) -> None:
        entry = Entry(kind=kind, folder=folder.relative_to(self.run_dir), role=role, round=round)
        passed, ahead = self.entries[: self.num_passed], self.entries[self.num_passed :]
        if any(entry.folder == other.folder for other in passed):
            return
        self.num_passed += 1
        if not ahead or ahead[0] != entry:
            # The entries after this one were made from something else, such as weights that were replaced since.
            self.entries = [*passed, entry]
            self._write()

    def _write(self) -> None:
        stages = [entry.model_dump(mode="json") for entry in self.entries]
        write_sealed(self.run_dir / FILE, {"schema": 1, "purpose": self.purpose, "stages": stages})


def read_ledger(run_dir: Path) -> list[Entry]:
    """The entries of RUN/stages.json. Raises UserError when it is missing or broken."""
    path = run_dir / FILE
    return [parse(Entry, raw, str(path)) for raw in read_as(_Ledger, path)["stages"]]
