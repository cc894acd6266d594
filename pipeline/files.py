"""Files that appear whole or not at all, JSON files, and files of JSON lines that survive a kill."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import Interrupted, UserError

Json = Any
_TEMPORARY = ".selftrain-"
SEAL = "seal"
"""The key under which a file that no other one vouches for holds a digest of its content."""


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a new file to write into; if the block succeeds, it is fsynced and renamed onto `path`.

    After a crash or a full disk, `path` is either what it was or complete. The file of a failed block is removed, and
    that of a killed one by the next process that writes into the folder. Its name cannot be guessed, so nobody can put
    a link there beforehand. With `durable=False`, which is for displays, nothing is fsynced.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent.resolve())
        temporary, file = _new_file(path.parent)
        with file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(temporary, path)  # under the lock, without which another process could take it for left over
        if durable:
            fsync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_file(folder: Path) -> tuple[Path, BinaryIO]:
    """A file of a random name, with the permissions that the umask gives, and locked as long as it is open."""
    while True:
        path = folder / f"{_TEMPORARY}{secrets.token_hex(8)}.tmp"
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")
        with contextlib.suppress(OSError):  # not every file system has locks; nothing is cleared there
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()  # another process took it for left over, before it was locked


@functools.cache
def _clear(folder: Path) -> None:
    """Once per process, remove what killed processes left in a folder. Whoever is alive holds the lock of its file."""
    for path in folder.glob(f"{_TEMPORARY}*.tmp"):
        with contextlib.suppress(OSError), open(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def open_to_append(path: Path) -> BinaryIO:
    """Open a file to add to its end. Raises OSError if it cannot be written, or is a link, which another may have put
    there."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)


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
    """Write a file, whole or not at all. Raises UserError as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


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


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table for people, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *([as_utf8(value) for value in row] for row in rows)])
    write_bytes(path, text.getvalue().encode())


def as_utf8(name: str) -> str:
    """A name as UTF-8 can hold it: of a file's name, bytes that are none are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def append_json(path: Path, value: Json) -> None:
    """Add a line to a file of JSON lines. A kill can cut the last line short, which then stays a line of its own."""
    try:
        with open_to_append(path) as file:
            end = file.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            file.write(b"\n" * torn + json.dumps(value).encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


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
        raise UserError(f"{path} does not exist; {_way_back(path)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise _damaged(path, f"a {type(value).__name__} in place of an object")
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _seal(value):
        raise _damaged(path, f"its content is not what was written; if you changed it, remove its `{SEAL}`")
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
