"""A stage is a pure function from a frozen config and input folders to one output folder.

This file holds what every stage shares: files that appear whole or not at all, fingerprints, the decision to reuse,
resume or refuse a folder, and the lock of a run folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError

SCHEMA = 1
StageKind = Literal["train", "meta", "moons", "label", "select", "evaluate"]
FORMAT_VERSION: dict[StageKind, int] = {"train": 2, "meta": 3, "moons": 2, "label": 2, "select": 1, "evaluate": 2}
"""Raised when a stage's algorithm or files change, so that old outputs are not taken for new ones."""

OWN_FILES = {"run.lock", "job.json", "output.log", "progress.json", "error.json", "warnings.jsonl"}
"""What a launcher writes into a stage folder before the stage opens it."""

Json = Any


# ---------------------------------------------------------------------------------------------------- atomic files


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is fsynced and renamed onto `path`.

    After a crash or a full disk `path` is either what it was or complete; the temporary file of a failed block is
    removed. Raises UserError when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; free space or fix permissions")


def fsync_folder(folder: Path) -> None:
    """Put the names of a folder's files on disk: a rename is safe only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Json) -> None:
    """Write JSON atomically, with stable formatting. NaN is refused: it is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def append_json(path: Path, value: Json) -> None:
    """Add a line to a file of JSON lines. A kill can cut the last line short, and no other."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_json(path: Path) -> Json:
    """Read a JSON file. Raises UserError that names the file when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def read_lines(path: Path, *, torn: bool = False) -> tuple[dict[str, Json], ...]:
    """The lines of a JSONL file, none if there is no such file. A half line at the end, being written, is left out.

    With `torn`, so are lines in the middle that are no JSON: a kill cuts a line, and the next process appends to it.
    """
    if not path.exists():
        return ()
    lines = []
    for line in path.read_text().split("\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            if not torn:
                raise UserError(f"{path} holds a line that is not JSON ({line[:80]!r}); delete that line") from error
    return tuple(lines)


def append_timing(stage: Path, step: int, seconds: float, images: int) -> None:
    """Add a line to a stage's timing.jsonl: what it took, which is never compared or resumed."""
    append_json(stage / "timing.jsonl", {"step": step, "seconds": round(seconds, 6), "images": images})


# ---------------------------------------------------------------------------------------------------- fingerprints


def digest(value: Json) -> str:
    """A hex digest of any JSON value: equal values give equal digests, whatever their key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(kind: StageKind, config: Mapping[str, Json], inputs: Mapping[str, str]) -> str:
    """What a stage's output is a function of: its semantic config, its inputs' fingerprints, its format version."""
    return digest({"kind": kind, "version": FORMAT_VERSION[kind], "config": dict(config), "inputs": dict(inputs)})


@functools.cache
def code_version(checkout: Path) -> str:
    """The last commit that changed pipeline/ in a source checkout, with "-dirty" if it was edited since.

    Other commits change no bits. "unknown" where there is no checkout, or git cannot tell; the release says it then.
    """
    if not (checkout / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments, "--", "pipeline"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("log", "-1", "--format=%H")[:12] + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---------------------------------------------------------------------------------------------------- stage folders


@dataclass(frozen=True)
class StageFolder:
    """An open stage folder. `complete` tells that a finished output is there to be reused."""

    path: Path
    kind: StageKind
    fingerprint: str
    complete: bool

    def finish(self, **outputs: Json) -> None:
        """Mark the folder complete. The last write of a stage."""
        record = read_json(self.path / "stage.json")
        write_json(self.path / "stage.json", {**record, "outputs": outputs, "complete": True})


def open_stage(
    path: Path,
    kind: StageKind,
    config: Mapping[str, Json],
    inputs: Mapping[str, str],
    env: Mapping[str, Json],
    *,
    accept_environment: bool = False,
) -> StageFolder:
    """Open `path` for one stage: reuse it if finished, resume it if the same stage began there, else refuse.

    Raises:
        UserError: the folder holds another stage's output, or a resume in another environment was not accepted.
    """
    wanted = fingerprint(kind, config, inputs)
    record_path = path / "stage.json"
    if not record_path.exists():
        check_stage_folder(path, kind)
        record = {
            "schema": SCHEMA,
            "kind": kind,
            "fingerprint": wanted,
            "config": dict(config),
            "inputs": dict(inputs),
            "environment": dict(env),
            "complete": False,
        }
        write_json(record_path, record)
        return StageFolder(path, kind, wanted, complete=False)
    record = read_json(record_path)
    if record["fingerprint"] != wanted:
        changed = _changes({**record["config"], **record["inputs"]}, {**config, **inputs})
        raise UserError(f"{path} holds a {record['kind']} stage with other settings ({changed}); choose another folder")
    if not record["complete"] and record["environment"] != dict(env):
        changed = _changes(record["environment"], env)
        if not accept_environment:
            raise UserError(
                f"{path} was begun in another environment ({changed}), so its continuation would not be bit-exact; "
                "go back to that environment, or pass --accept-environment"
            )
        history = [*record.get("earlier_environments", []), record["environment"]]
        write_json(record_path, {**record, "environment": dict(env), "earlier_environments": history})
    return StageFolder(path, kind, wanted, complete=record["complete"])


def check_stage_folder(path: Path, kind: StageKind) -> None:
    """Refuse a folder with files of the user's: those that a launcher would replace by name are told by `job.json`.

    Raises:
        UserError: it is no stage folder and not empty.
    """
    if not path.exists() or (path / "stage.json").exists():
        return
    names = {p.name for p in path.iterdir() if p.name[0] != "."}
    begun = "job.json" in names and _is_job(path / "job.json")
    if names - (OWN_FILES if begun else {"run.lock"}):
        raise UserError(f"{path} is not empty and not a {kind} stage; choose another output folder")


def _is_job(path: Path) -> bool:
    try:
        return {"kind", "out"} <= set(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return False


def stage_record(path: Path) -> dict[str, Json]:
    """The stage.json of a finished stage. Raises UserError when the folder is no stage or is unfinished."""
    record: dict[str, Json] = read_json(path / "stage.json")
    if not record.get("complete"):
        raise UserError(f"{path} is an unfinished stage; type the command that began it again to go on")
    return record


def _changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> str:
    keys = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    return ", ".join(f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in keys[:4]) or "stage format"


# ---------------------------------------------------------------------------------------------------- the run lock


def find_run(path: Path) -> Path | None:
    """The run folder that a path is or lies in, if there is one."""
    path = path.absolute()
    return next((f for f in (path, *path.parents) if (f / "run.lock").exists() and (f / "config.yaml").exists()), None)


@contextlib.contextmanager
def run_lock(folder: Path, *, wait_s: float = 20.0) -> Iterator[int]:
    """Hold the lock of a run folder; yields its file descriptor, which child processes inherit.

    The lock is gone when the last process that holds it ends, however it ends. A command typed again right after a
    kill therefore waits for the old children.

    Raises:
        UserError: another process still holds it after `wait_s` seconds, or the folder cannot be written.
    """
    path = folder / "run.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; choose another folder or fix permissions"
        ) from error
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
                    raise UserError(
                        f"{folder} is in use by process {owner}; wait for it, stop it, or choose another folder"
                    ) from None
                time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
