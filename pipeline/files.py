"""Files that appear whole or not at all, JSON files, and files of JSON lines that survive a kill."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

Json = Any


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; if the block succeeds, it is fsynced and renamed onto `path`.

    After a crash or a full disk, `path` is either what it was or complete. The temporary file of a failed block is
    removed.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error to raise where a file cannot be written."""
    return UserError(f"cannot write {path}: {error.strerror or error}; free space or fix permissions")


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. A rename is safe only after that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all. Raises UserError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Json) -> None:
    """Write JSON with stable formatting, whole or not at all. Raises ValueError for NaN, which is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def append_json(path: Path, value: Json) -> None:
    """Add a line to a file of JSON lines. A kill can cut the last line short, but no other one."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_json(path: Path) -> Json:
    """Read a JSON file, which holds an object.

    Raises:
        UserError: it is missing or broken. The same goes for whoever then asks the object for a key that it lacks.
    """

    class Object(dict[str, Json]):
        def __missing__(self, key: str) -> Json:
            raise _damaged(path, f"it has no `{key}`")

    try:
        value = json.loads(path.read_text(), object_hook=Object)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {_way_back(path)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"a {type(value).__name__} in place of an object")
    return value


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged ({what}); {_way_back(path)}")


def _way_back(path: Path) -> str:
    """How a file is had again that is gone or damaged."""
    if path.name == "stage.json" or (path.parent / "stage.json").exists():
        return f"delete the folder {path.parent} and type the command that made it again"
    if path.name in ("result.json", "stages.json"):  # of a run folder
        return f"{'delete it and ' if path.exists() else ''}type the command of the run again"
    return "restore it, or make it again"


def read_lines(path: Path, *, torn: bool = False) -> tuple[dict[str, Json], ...]:
    """The lines of a file of JSON lines; none if there is no such file. A half line at the end is left out.

    With `torn`, lines in the middle that are not JSON are left out too: a kill may cut a line, to which the next
    process appends.

    Raises:
        UserError: a line is not JSON, and `torn` is not set.
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


def sync_lines(path: Path) -> None:
    """Bring JSON lines to the disk, so that a checkpoint that survives a power cut finds the lines before its step."""
    if path.exists():
        fsync(path)
    fsync(path.parent)


def cut_lines(path: Path, step: int | None = None) -> None:
    """Remove a last line that a kill cut short and, if `step` is given, the lines of later steps."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in lines if step is None or json.loads(line)["step"] <= step]
        write_bytes(path, "".join(kept).encode())
