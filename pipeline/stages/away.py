"""A stage at an address of an object store: it is filled in a folder of this machine, and what is finished is stored.

What is at the address counts. Whoever goes on with the stage, on any machine, first brings here what is there. Files
are stored whole: stage.json when the stage has begun, each output as soon as it is finished, and at the end stage.json.
So a kill at any moment leaves a stage that was begun, and loses no output but those that were not stored yet.

An object store has no locks. Two machines that fill one stage at one time store equal bytes under equal names, because
outputs are functions of their provenance: at worst they work twice, and parts divide the work. Stages of other settings
refuse what is there, once it has begun; what two of them store that begin within seconds is refused by its provenance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Interrupted, UserError
from pipeline.files import atomic_file, check_shape, parsing
from pipeline.remote import Remote
from pipeline.stages.folder import RECORD, Record, is_finished, read_record
from pipeline.stages.jobs import Job
from pipeline.stages.launch import run_job
from pipeline.stages.lock import run_lock
from pipeline.stages.part import PARTS
from pipeline.stages.progress import Progress

_AT_ONCE = 8  # files that are fetched or stored at one time
_WRITTEN_ONCE = "*.arrow"
"""Outputs that are stored while the stage is under way."""


def work_folder(cache: Path, address: Remote, name: str) -> Path:
    """Where the stage at an address is filled on this machine; `name` has its fingerprint, as in a run."""
    return address.within(cache / "stages") / name


def fetch_stage(cache: Path, address: Remote) -> Path:
    """Bring a stage here to read it; returns its folder.

    Raises:
        UserError: there is no stage, its record is damaged, or it cannot be reached.
    """
    path = Path(f"{address / RECORD}")
    with parsing(f"{address / RECORD} is damaged", "store the stage again"):
        raw = json.loads((address / RECORD).read())
        check_shape(Record, raw, path)
        name = f"{raw['kind']}-{raw['fingerprint'][:8]}"
        if not re.fullmatch("[a-z]+-[0-9a-f]{8}", name):  # it will be the name of a folder
            raise ValueError(f"{name!r} names no stage")
    folder = work_folder(cache, address, name)
    Copy(folder, address).fetch(folder)
    return folder


def run_away(job: Job, whole: Path, address: Remote, on_progress: Callable[[Progress], None]) -> None:
    """Run a stage, or a part of it, whose folder `whole` is a copy of what is at an address.

    Raises:
        UserError: the input is bad, something else is at the address, or it cannot be reached; what is finished stays
            here, and the same command goes on.
        Interrupted: a signal stopped it; what was finished is stored.
    """
    with run_lock(job.out) as lock_fd:
        copy = Copy(whole, address)
        copy.fetch(job.out)

        def told(now: Progress) -> None:
            on_progress(now)
            copy.store(job.out)

        try:
            run_job(job, lock_fd=lock_fd, on_progress=told)
        except Interrupted:  # this machine may go away
            copy.store(job.out)
            raise
        copy.store(job.out)


@dataclass
class Copy:
    """A stage folder here, with its parts, and what is stored of it."""

    whole: Path
    address: Remote
    sizes: dict[str, int] = field(default_factory=dict)
    """Name -> size of what is stored."""
    record: bytes | None = None
    """The stage.json of the folder under way, as it was stored last."""

    def fetch(self, own: Path) -> None:
        """Bring here what is stored and not here. The stage.json of the folder `own` is taken unless it is finished."""
        found = self.address.files(below=True)
        strangers = [name for name in found if name.partition("/")[0] != PARTS]
        if strangers and RECORD not in found:
            raise UserError(f"{self.address} is not empty and not a stage ({min(strangers)}); choose another address")
        anew = {name for name in found if not (self.whole / name).exists()}
        if not is_finished(own):
            anew |= {self._name(own / RECORD)} & found.keys()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._fetch, anew))
        self.sizes |= {name: status.size for name, status in found.items()}

    def store(self, own: Path) -> None:
        """Store what is finished in the folder `own`, and is not stored yet."""
        if not (own / RECORD).exists():
            return
        self._store_record(own, first=True)
        outputs = {*own.glob(_WRITTEN_ONCE), *(own / name for name in read_record(own).get("digests", {}))}
        sizes = {self._name(path): path.stat().st_size for path in sorted(outputs)}
        new = {name: size for name, size in sizes.items() if self.sizes.get(name) != size}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: (self.address / name).write(self.whole / name), new))
        self.sizes |= new
        self._store_record(own)

    def _fetch(self, name: str) -> None:
        with atomic_file(self.whole / name) as file:
            file.writelines((self.address / name).chunks())

    def _store_record(self, own: Path, *, first: bool = False) -> None:
        now, name = (own / RECORD).read_bytes(), self._name(own / RECORD)
        if now != self.record and not (first and name in self.sizes):
            (self.address / name).write(own / RECORD)
            self.record, self.sizes[name] = now, len(now)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.whole))
