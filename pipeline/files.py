"""Files that appear whole or not at all, JSON files, and files of JSON lines that survive a kill."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import Interrupted, UserError

Json = Any
SEAL = "seal"
"""The key under which a file that no other one vouches for holds a digest of its content."""


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
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
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


@contextlib.contextmanager
def parsing(what: str, fix: str, *, tell: bool = True) -> Iterator[None]:
    """Turn what a parser raises at bad bytes, which is nearly anything, into a UserError: "`what` (why); `fix`".

    The block holds the parser's call and nothing else, so that no defect of ours is taken for a damaged file. Without
    `tell` the parser's own text is left out.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        why = f" ({str(error)[:300] or type(error).__name__})" if tell else ""
        raise UserError(f"{what}{why}; {fix}") from error


def write_json(path: Path, value: Json) -> None:
    """Write JSON with stable formatting, whole or not at all. Raises ValueError for NaN, which is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_sealed(path: Path, value: dict[str, Json]) -> None:
    """Write JSON with a seal, by which `read_json` knows it again. Raises as `write_json` does."""
    write_json(path, {**value, SEAL: _seal(json.loads(json.dumps(value)))})


def _seal(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def append_json(path: Path, value: Json) -> None:
    """Add a line to a file of JSON lines. A kill can cut the last line short, but no other one."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_json(path: Path) -> Json:
    """Read a JSON file, which holds an object.

    Raises:
        UserError: it is missing or broken, or its seal, if it has one, is not that of its content. The same goes for
            whoever then asks the object for a key that it lacks.
    """

    class Object(dict[str, Json]):
        def __missing__(self, key: str) -> Json:
            raise _damaged(path, f"it has no `{key}`")

    try:
        value = json.loads(path.read_text(), object_hook=Object)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; if a run made it, type the command of the run again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"a {type(value).__name__} in place of an object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise _damaged(path, f"its content is not what was written; if you changed it, remove its `{SEAL}`")
    return value


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is damaged ({what}); restore it, or if a run made it, delete the stage's folder (or a file that is "
        "the run folder's own) and type the command of the run again"
    )


def read_as(shape: Any, path: Path) -> Json:
    """Read a JSON file that holds a `shape`, a TypedDict. Raises UserError as `read_json` and `check_shape` do."""
    value = read_json(path)
    check_shape(shape, value, path)
    return value


def check_shape(shape: Any, value: Json, path: Path) -> None:
    """Refuse a value that is read from a file and has not the types of `shape`. Keys that the shape lacks may be there.

    Raises:
        UserError: names the file and the first key that is wrong.
    """
    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _damaged(path, f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}") from error


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def read_lines(path: Path, *, torn: bool = False) -> tuple[dict[str, Json], ...]:
    """The lines of a file of JSON lines; none if there is no such file. A half line at the end is left out.

    With `torn`, lines in the middle that are no JSON objects are left out too: a kill may cut a line, to which the next
    process appends.

    Raises:
        UserError: a line is no JSON object, and `torn` is not set.
    """
    if not path.exists():
        return ()
    found = ((number, line, parse_line(line)) for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1))
    return tuple(_known(path, number, line, value) for number, line, value in found if value is not None or not torn)


def parse_line(line: bytes) -> dict[str, Json] | None:
    """The object that a line of JSON lines holds; None if it holds none, because it is torn or damaged."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _known(path: Path, number: int, line: bytes, value: dict[str, Json] | None) -> dict[str, Json]:
    if value is None:
        some = line[:80].strip(b"\0").decode(errors="replace")
        raise UserError(f"{path} holds a line that is not JSON (line {number}: {some!r}); delete that line")
    return value


def sync_lines(path: Path) -> None:
    """Bring JSON lines to the disk, so that a checkpoint that survives a power cut finds the lines before its step."""
    if path.exists():
        fsync(path)
    fsync(path.parent)


def cut_lines(path: Path, step: int | None = None) -> None:
    """Remove a last line that a kill cut short and, if `step` is given, the lines of later steps.

    Raises:
        UserError: `step` is given, and a line is damaged.
    """
    if path.exists():
        lines = path.read_bytes().split(b"\n")[:-1]
        if step is not None:
            values = [_known(path, number, line, parse_line(line)) for number, line in enumerate(lines, 1)]
            with parsing(f"{path} holds a line without a step", "delete that line"):
                lines = [line for line, value in zip(lines, values, strict=True) if value["step"] <= step]
        write_bytes(path, b"".join(line + b"\n" for line in lines))
