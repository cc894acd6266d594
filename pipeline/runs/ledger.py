"""The ledger of a run, RUN/stages.json: which stages it asked for, in order, and what each was for.

A report of an unfinished run knows by it what belongs to the run and what was left by other settings.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Section, parse
from pipeline.files import read_json, write_json
from pipeline.stages.jobs import Job, Role

FILE = "stages.json"


class Entry(Section):
    """One stage."""

    kind: str
    folder: Path
    """Relative to the run folder."""
    role: Role | None = None
    """Of a training."""
    round: int | None = None


class Ledger:
    """The stages that a run asked for so far.

    Args:
        run_dir: The run folder.
        purpose: A digest of config, data and stage versions. The same command typed again goes along what is there and
            adds to it; another begins anew.
    """

    def __init__(self, run_dir: Path, purpose: str) -> None:
        self.run_dir, self.purpose = run_dir, purpose
        path = run_dir / FILE
        same = path.exists() and read_json(path)["purpose"] == purpose
        self.entries: list[Entry] = read_ledger(run_dir) if same else []
        self.num_passed = 0
        self._write()

    def add(self, job: Job) -> None:
        """Note a stage before it runs."""
        self._add(job.kind, job.out, getattr(job, "role", None), getattr(job, "round", None))

    def add_model(self, folder: Path, role: Role, round: int) -> None:
        """Note a model that a stage left beside its own, such as a teacher that was trained along."""
        self._add("train", folder, role, round)

    def _add(self, kind: str, folder: Path, role: Role | None, round: int | None) -> None:
        entry = Entry(kind=kind, folder=folder.relative_to(self.run_dir), role=role, round=round)
        passed, ahead = self.entries[: self.num_passed], self.entries[self.num_passed :]
        if any(entry.folder == other.folder for other in passed):
            return
        self.num_passed += 1
        if not ahead or ahead[0] != entry:
            # What followed there was made from something else, such as weights that were replaced since.
            self.entries = [*passed, entry]
            self._write()

    def _write(self) -> None:
        stages = [entry.model_dump(mode="json") for entry in self.entries]
        write_json(self.run_dir / FILE, {"schema": 1, "purpose": self.purpose, "stages": stages})


def read_ledger(run_dir: Path) -> list[Entry]:
    """The entries of RUN/stages.json. Raises UserError when it is missing or broken."""
    path = run_dir / FILE
    return [parse(Entry, raw, str(path)) for raw in read_json(path)["stages"]]
