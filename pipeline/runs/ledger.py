"""The ledger of a run, RUN/stages.json: which stages its config asked for, in order, and what each was for.

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
        run_dir: The run folder. purpose: A digest of config, data and stage versions. The same command typed again adds
        to what is there; another
            begins anew.
    """

    def __init__(self, run_dir: Path, purpose: str) -> None:
        self.run_dir, self.purpose = run_dir, purpose
        path = run_dir / FILE
        same = path.exists() and read_json(path)["purpose"] == purpose
        self.entries: list[Entry] = read_ledger(run_dir) if same else []
        self._write()

    def add(self, job: Job) -> None:
        """Note a stage before it runs."""
        self._add(job.kind, job.out, getattr(job, "role", None), getattr(job, "round", None))

    def add_model(self, folder: Path, role: Role, round: int) -> None:
        """Note a model that a stage left beside its own, such as a teacher that was trained along."""
        self._add("train", folder, role, round)

    def _add(self, kind: str, folder: Path, role: Role | None, round: int | None) -> None:
        relative = folder.relative_to(self.run_dir)
        if all(entry.folder != relative for entry in self.entries):
            self.entries.append(Entry(kind=kind, folder=relative, role=role, round=round))
            self._write()

    def _write(self) -> None:
        stages = [entry.model_dump(mode="json") for entry in self.entries]
        write_json(self.run_dir / FILE, {"schema": 1, "purpose": self.purpose, "stages": stages})


def read_ledger(run_dir: Path) -> list[Entry]:
    """The entries of RUN/stages.json. Raises UserError when it is missing or broken."""
    path = run_dir / FILE
    return [parse(Entry, raw, str(path)) for raw in read_json(path)["stages"]]
