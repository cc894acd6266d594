"""Mirrors of remote folders: a folder of the cache in which files of an object store appear when they are opened.

A mirror lies at CACHE/remote/s3/BUCKET/FOLDER, so its files have the names that they have there, which are part of
fingerprints. It has a record of what the remote folder held when it was opened, the manifest as it was then, and of the
other files those that were asked for. Tars are fetched whole, by ranged reads, and removed again for others, the least
recently read first. All processes of a machine that share the cache share its tars: one fetches, others wait for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.files import atomic_file, read_json, write_bytes
from pipeline.remote import Place, Remote, RemoteError, Status, place
from pipeline.shards.exclusive import exclusive
from pipeline.shards.manifest import MANIFEST, read_manifest
from pipeline.stages.fingerprint import once

RECORD = ".selftrain-remote.json"
_FOLDER = "remote"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_AT_ONCE = 16
_FULL = 15 / 16  # of the limit, to which a look clears
_room: dict[Path, int] = {}
"""Folder of all mirrors -> the bytes that this process may fetch before it looks again what is there."""

log = logging.getLogger("selftrain.shards")


@dataclass(frozen=True)
class _Record:
    """What a remote folder held when it was opened last."""

    address: Remote
    limit: int
    """The bytes of tars that the cache keeps."""
    root: Path
    """The folder of all mirrors, within which the limit holds."""
    files: Mapping[str, Status]


# ----------------------------------------------------------------------------------------------------------- opening


def here(at: Place, cache: Path, limit_gb: float) -> Path:
    """The folder at a place of the config: itself, or the mirror of a remote one, whose record is made anew.

    Raises:
        UserError: the remote folder is empty, or cannot be reached.
    """
    if isinstance(at, Path):
        return at
    root = cache / _FOLDER
    folder = at.within(root)
    # The manifest first: a pack under way writes it last, so the list that comes after has all of its shards.
    manifest = (at / MANIFEST).read() if (at / MANIFEST).status() else None
    files = at.files()
    if not files:
        raise RemoteError(f"{at} holds no files; fix the address, or pack a folder and copy it there")
    _put(folder / MANIFEST, manifest)
    _put(folder / RECORD, _encoded(_Record(at, int(limit_gb * 1e9), root, files)))
    if manifest is not None and at.has_folder("truth"):
        here(at / "truth", cache, limit_gb)
    size = sum(status.size for name, status in files.items() if name.endswith(".tar"))
    if size > limit_gb * 1e9:
        kept = f"data.remote_cache_gb keeps {limit_gb:g} GB of them"
        log.info("%s has %.3g GB of tars, and %s: others are fetched each time", at, size / 1e9, kept)
    return folder


def _encoded(record: _Record) -> bytes:
    files = {name: tuple(status) for name, status in sorted(record.files.items())}
    raw = {"address": str(record.address), "limit": record.limit, "root": str(record.root), "files": files}
    return (json.dumps(raw) + "\n").encode()


def _put(path: Path, data: bytes | None) -> None:
    """Have a file hold this, or not exist. What holds it already is not touched, so that its clock tells of changes."""
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    if data is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, data)


@once
def _read(path: Path) -> _Record:
    raw = read_json(path)
    address = place(raw["address"])
    assert isinstance(address, Remote)
    files = {name: Status(*status) for name, status in raw["files"].items()}
    return _Record(address, raw["limit"], Path(raw["root"]), files)


def _record_of(path: Path) -> _Record | None:
    """The record of the mirror that a file lies in; None for other files."""
    try:
        return _read(path.parent / RECORD)
    except OSError:  # there is none, or no such folder
        return None


# ------------------------------------------------------------------------------------- files, in mirrors and elsewhere


def is_remote(path: Path) -> bool:
    """Whether a file lies in a mirror."""
    return _record_of(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is such a file; in a mirror, whether the remote folder has it."""
    record = _record_of(path)
    return path.is_file() if record is None else path.name in record.files


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; of a mirror those of the remote one."""
    record = _record_of(folder / MANIFEST)
    return sorted(record.files if record else os.listdir(folder))


def status_of(path: Path) -> Status:
    """The size and time of a file; in a mirror those of the remote one, which need not be here.

    Raises:
        OSError: there is no such file.
    """
    record = _record_of(path)
    if record is None:
        status = path.stat()
        return Status(status.st_size, status.st_mtime_ns)
    if path.name not in record.files:
        raise FileNotFoundError(2, f"{record.address} has no {path.name}")
    return record.files[path.name]


def fetched(path: Path) -> Path:
    """The same path, whose file is fetched first if it lies in a mirror and is not here.

    Raises:
        UserError: it cannot be fetched, or is not what was packed.
    """
    record = _record_of(path)
    if record is not None and path.name in record.files and not _is_here(path, record.files[path.name]):
        _fetch(path, record)
    return path


def fetch_together(paths: Iterable[Path]) -> None:
    """Fetch small files that have never been here, many at one time. Raises UserError as `fetched` does."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fetched, [path for path in paths if not path.exists() and is_remote(path)]))


def open_fetched(path: Path) -> int:
    """Open a file to read from it, fetched first if need be. A tar of a mirror stays while it is open.

    Raises:
        OSError: it does not exist or cannot be read.
        UserError: as `fetched` does.
    """
    record = _record_of(path)
    if record is None or path.name not in record.files:
        return os.open(path, _FLAGS)
    while True:
        fetched(path)
        with contextlib.suppress(FileNotFoundError):  # another process made room in between
            descriptor = os.open(path, _FLAGS)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor, ns=(time.time_ns(), record.files[path.name].mtime_ns))
            return descriptor


def _is_here(path: Path, status: Status) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == status


# ----------------------------------------------------------------------------------------------------------- fetching


def _fetch(path: Path, record: _Record) -> None:
    status, address = record.files[path.name], record.address / path.name
    with exclusive(path.with_name(f"{path.name}.lock")):
        if _is_here(path, status):  # another process has fetched it
            return
        if path.suffix == ".tar":
            _make_room(record.root, status.size, record.limit)
        state = hashlib.sha256()
        with atomic_file(path) as file:
            for chunk in address.chunks():
                state.update(chunk)
                file.write(chunk)
            _check(path, address, status, file.tell(), state.hexdigest())
            file.flush()
            os.utime(file.fileno(), ns=(time.time_ns(), status.mtime_ns))


def _check(path: Path, address: Remote, status: Status, size: int, sha256: str) -> None:
    """Refuse what is not the shard that was packed or, without a manifest, not the file that was listed."""
    packed = _digests(path.parent / MANIFEST) if (path.parent / MANIFEST).exists() else {}
    if path.name in packed:
        if sha256 != packed[path.name]:
            differ = f"sha256 {sha256[:12]}, manifest {packed[path.name][:12]}"
            raise RemoteError(f"{address} is not the shard that was packed: {differ}; copy it there again")
    elif size != status.size or address.status() != status:
        raise RemoteError(f"{address} changed while it was read; type the command again when nobody writes there")


@once
def _digests(manifest: Path) -> dict[str, str]:
    return {f"{entry.name}.tar": entry.sha256 for entry in read_manifest(manifest.parent).shards}


def _make_room(root: Path, num_bytes: int, limit: int) -> None:
    """Remove the tars that were read least recently, until so many bytes more are within the limit.

    A tar that is open in some process stays, so the limit may be exceeded by those that are read at one time. With many
    small tars a look at all of them takes longer than to fetch one. So each look makes some room more, and this process
    looks again when it has fetched as much as a quarter of what is free, since others fetch too.
    """
    with exclusive(root / "room.lock"):
        _room[root] = _room.get(root, 0) - num_bytes
        if _room[root] >= 0:
            return
        found = []
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith((".tar", ".tmp")):  # the latter is being fetched
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(os.path.join(folder, name))
                        found.append((status.st_atime_ns, status.st_size, Path(folder, name)))
        total = sum(size for _, size, _ in found) + num_bytes
        for _, size, path in sorted(found):
            if total <= _FULL * limit:
                break
            if path.suffix == ".tar" and _removed(path):
                total -= size
        _room[root] = max(limit - total, 0) // 4


def _removed(path: Path) -> bool:
    """Remove a tar unless it is open somewhere; returns whether it is gone."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
