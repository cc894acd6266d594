"""Tar files: a fast walk over the headers of one, and the reproducible writing of another.

The walk reads one header of 512 bytes per member. It knows ustar, pax (path, size) and GNU long names; the formats are
those of POSIX.1-2001 pax and of the GNU tar manual, "Basic Tar Format". It is our own because `tarfile` takes 3 times
as long, which is a sixth of the time that an index of CIFAR images takes, and because `tarfile` reads an extended
header into memory whatever size it claims (benchmarks/results.md). `tarfile` writes.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import atomic_file
from pipeline.shards.mirror import open_fetched

_BLOCK = 512
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_DIGITS = 20  # of the size of a file; Python refuses to read numbers of thousands
_MAX_EXTENDED = 1 << 20  # bytes of a pax or long-name record; a larger one is an attack or rubbish


_WHAT = {
    b"1": ("a link to {}, which is not before it", "tar --hard-dereference"),
    b"2": ("a link to {}", "tar --dereference"),
    b"S": ("a sparse file", "without --sparse"),
}
_OTHER = ("a pipe, a device or of a kind that is not known", "without it")


class Member(NamedTuple):
    """A regular file in a tar: its bytes lie at [offset, offset + size)."""

    name: str
    offset: int
    size: int


class CutTarError(UserError):
    """The tar ends before its end-of-archive mark; what was yielded before is whole."""


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[int]:
    """Yield a file descriptor to `os.pread` samples from. Every read of a shard goes through here.

    Raises:
        UserError: the tar does not exist, cannot be read or, if it is remote, cannot be fetched.
    """
    try:
        descriptor = open_fetched(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; fix its permissions (chmod +r)") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def inside_path(name: str, archive: Path) -> str:
    """The normalized name of a member. Raises UserError when it is absolute or leaves the archive."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0].startswith("/") or ".." in parts:
        raise UserError(f"{archive}: member `{name}` points outside the archive; make it again with relative names")
    return "/".join(parts)


def walk(path: Path) -> Iterator[Member]:
    """Yield the regular files of a tar in file order; folders are passed over.

    Raises:
        CutTarError: the file ends early; raised after the members that are whole.
        UserError: not a tar, a damaged header, a symbolic link, a sparse file, or a hard link to nothing before it.
    """
    with open_shard(path) as descriptor:
        yield from _walk(descriptor, path)


def _walk(descriptor: int, path: Path) -> Iterator[Member]:
    end = os.fstat(descriptor).st_size
    position, last = 0, "(the first member)"
    extended: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}  # for hard links, by which tar stores the second name of a file
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if position == 0 and header.startswith(_COMPRESSED):
            raise UserError(f"{path} is compressed; decompress it first, since samples are read at their places")
        if len(header) < _BLOCK:
            raise CutTarError(f"{path} is cut after {last}: it has no end-of-archive mark; copy or pack it again")
        if not header.strip(b"\0"):
            _check_end(descriptor, position, path)
            return
        _check(header, path, position)
        kind, offset = header[156:157], position + _BLOCK
        size = int(extended["size"]) if "size" in extended else _number(header[124:136], path, position)
        size = 0 if kind in b"12" else size  # links have no data, whatever they announce
        name = extended.get("path") or _name(header)
        position = offset + -(-size // _BLOCK) * _BLOCK
        if size < 0 or offset + size > end:
            raise CutTarError(f"{path} is cut in {name}: {size} bytes announced, {end - offset} there; copy it again")
        if kind in b"xgLK":
            if size > _MAX_EXTENDED:
                raise UserError(f"{path}: the extended header at byte {offset} has {size} bytes; the tar is damaged")
            record = os.pread(descriptor, size, offset)
            if kind == b"x":
                extended |= _pax(record, path, offset)
            elif kind in b"LK":
                extended["path" if kind == b"L" else "linkpath"] = _text(record)
            continue
        target = extended.get("linkpath") or _text(header[157:257])
        extended = {}
        last = name
        if kind in b"0\x007":
            if not name.endswith("/"):  # a folder in the tars of old writers
                places[name] = (offset, size)
                yield Member(name, offset, size)
        elif kind == b"1" and target in places:
            places[name] = places[target]
            yield Member(name, *places[target])
        elif kind not in b"5VD":  # folders, a label, lists of folders
            what, fix = _WHAT.get(kind, _OTHER)
            raise UserError(f"{path}: {name} is {what.format(target)}; make the tar again from plain files ({fix})")


def _check_end(descriptor: int, position: int, path: Path) -> None:
    """Refuse what lies behind the end-of-archive mark, such as another tar, of which nobody would see the files."""
    while block := os.pread(descriptor, 1 << 20, position):
        if block.strip(b"\0"):
            raise UserError(
                f"{path} goes on after its end, as tars that were joined do; extract it (tar --ignore-zeros -xf) and "
                "make one tar of the files"
            )
        position += len(block)


def _check(header: bytes, path: Path, position: int) -> None:
    stored = header[148:156].strip(b"\0 ")
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if not stored or stored.strip(b"01234567") or int(stored, 8) != actual:
        if position == 0:
            raise UserError(f"{path} is not a tar")
        raise UserError(f"{path} is damaged at byte {position}: the checksum of a header is wrong; copy it again")


def _number(field: bytes, path: Path, position: int) -> int:
    if field[0] & 0x80:  # GNU base-256, for files of 8 GiB and more
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise UserError(f"{path} is damaged at byte {position}: size {field!r}; copy it again") from error


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax(record: bytes, path: Path, offset: int) -> dict[str, str]:
    fields: dict[str, str] = {}
    while record:
        length, _, rest = record.partition(b" ")
        if not length.isdigit() or len(length) > _DIGITS or not 0 < int(length) <= len(record):
            raise UserError(f"{path} is damaged at byte {offset}: a broken pax record; copy it again")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key.startswith(b"GNU.sparse") or (key == b"size" and not (value.isdigit() and len(value) <= _DIGITS)):
            raise UserError(f"{path}: unusable pax field {key!r} at byte {offset}; make the tar again from plain files")
        if key in {b"path", b"size", b"linkpath"}:
            fields[key.decode()] = value.decode("utf-8", "surrogateescape")
        record = record[int(length) :]
    return fields


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar atomically; equal files give equal bytes (no time, no owner, no mode of the source)."""
    with (
        atomic_file(path) as raw,
        tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
