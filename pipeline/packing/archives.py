"""The files of a tar or a zip, and files of the disk, read within bounds: an archive may lie about sizes and kinds."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

from pipeline.errors import UserError
from pipeline.shards.magic import HEAD
from pipeline.shards.tar import inside_path, open_shard, walk

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # gzip, bzip2, xz
_UTF8 = 0x800
"""The flag of a zip member whose name is in UTF-8."""


class Read(Protocol):
    """Read a file by its name."""

    def __call__(self, name: str, limit: int, *, cut: bool = False) -> bytes:
        """All bytes of a file, or with `cut` the first `limit` ones.

        Raises:
            UserError: it cannot be read, or without `cut` it has more bytes than `limit`.
        """


@dataclass(frozen=True)
class Files:
    """Files by their names."""

    names: tuple[str, ...]
    """Paths with `/`, each once."""
    read: Read
    """May be called by many threads."""


def open_folder(path: Path, names: Sequence[str]) -> Files:
    """Files of a folder, by their paths in it."""

    def read(name: str, limit: int, *, cut: bool = False) -> bytes:
        return read_regular(path / name, limit, cut=cut)

    return Files(tuple(names), read)


def read_regular(path: Path, limit: int, *, cut: bool = False) -> bytes:
    """The bytes of a regular file: a pipe would wait for ever, and a device may have no end. As `Read` otherwise."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a pipe or a device and no file; remove it")
            data = file.read(limit if cut else limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; fix it (chmod +r) or remove it") from error
    return _within(data, limit, str(path))


def _within(data: bytes, limit: int, name: str) -> bytes:
    if len(data) > limit:
        raise UserError(f"{name} is larger than {limit >> 20} MiB; shrink it")
    return data


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[Files]:
    """The files of a tar. Raises UserError as `walk` does, and for a member that is there twice."""
    places: dict[str, tuple[int, int]] = {}
    for name, offset, size in walk(path):
        inside = inside_path(name, path)
        if inside in places:
            raise UserError(f"{path} holds {inside} twice; make the tar again from a folder")
        places[inside] = (offset, size)
    with open_shard(path) as descriptor:

        def read(name: str, limit: int, *, cut: bool = False) -> bytes:
            offset, size = places[name]
            return _within(os.pread(descriptor, min(size, limit if cut else limit + 1), offset), limit, name)

        yield Files(tuple(places), read)


@contextlib.contextmanager
def open_compressed_tar(path: Path) -> Iterator[Files]:
    """The files of a tar in gzip, bzip2 or xz: it is decompressed into a temporary file, since images are read twice.

    Raises:
        UserError: it is damaged, no tar, or larger than the temporary folder has room for; or as `open_tar` does.
    """
    with tempfile.TemporaryDirectory(prefix="selftrain-") as folder:
        tar = Path(folder) / "decompressed.tar"
        try:
            with _decompressed(path) as source, open(tar, "wb") as target:
                head = source.read(HEAD)
                tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
                target.write(head)
                shutil.copyfileobj(source, target, 1 << 20)
        except tarfile.HeaderError as error:
            raise UserError(f"{path} is compressed and no tar inside; decompress it first") from error
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise UserError(
                    f"{path} cannot be decompressed into {folder}: {error.strerror}; set TMPDIR to a folder with room "
                    "for all of it, or decompress it yourself and give the tar"
                ) from error
            # gzip and bz2 tell of damage by an OSError without a number
            raise UserError(f"{path} is damaged: {error}; copy it again") from error
        try:
            with open_tar(tar) as files:
                yield files
        except UserError as error:
            raise UserError(str(error).replace(str(tar), str(path))) from error


def _decompressed(path: Path) -> IO[bytes]:
    head = read_regular(path, HEAD, cut=True)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    return bz2.open(path) if head.startswith(b"BZh") else lzma.open(path)


@contextlib.contextmanager
def open_zip(path: Path, encoding: str | None = None) -> Iterator[Files]:
    """The files of a zip.

    Raises:
        UserError: it is damaged, has a member twice, or names in a code page that neither it nor `encoding` names.
    """
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = archive.infolist()
        except Exception as error:  # a damaged directory makes zipfile raise nearly anything, even struct.error
            raise UserError(f"{path} is a damaged zip ({error}); copy it again") from error
        infos: dict[str, zipfile.ZipInfo] = {}
        for info in members:
            # Some programs of Windows write `\\` between folders, which the format does not allow in names.
            name = _name(info, encoding, path).replace("\\", "/")
            if name.endswith("/"):
                continue
            name = inside_path(name, path)
            if name in infos:
                raise UserError(f"{path} holds {name} twice; make the zip again from a folder")
            infos[name] = info
        yield Files(tuple(infos), _reader(archive, infos))


def _name(info: zipfile.ZipInfo, encoding: str | None, path: Path) -> str:
    if info.flag_bits & _UTF8 or info.filename.isascii():
        return info.filename
    raw = info.filename.encode("cp437")  # what zipfile has decoded it with
    try:
        return raw.decode(encoding or "utf-8")
    except LookupError as error:
        raise UserError(f"--zip-encoding {encoding} is unknown; give one such as shift_jis, gbk or cp437") from error
    except UnicodeDecodeError as error:
        if encoding:
            raise UserError(f"{path}: a name is not in --zip-encoding {encoding}: {error}; give another") from error
        raise UserError(
            f"{path} has names in a code page that it does not name, such as {raw!r}; say which with --zip-encoding, "
            "such as shift_jis, gbk, cp1252 or cp437"
        ) from error


def _reader(archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo]) -> Read:
    lock = threading.Lock()  # ZipFile shares one file position

    def read(name: str, limit: int, *, cut: bool = False) -> bytes:
        info = infos[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{name} is compressed in a way that is not read here (method {info.compress_type}); "
                "extract the zip and give the folder"
            )
        wanted = min(info.file_size, limit if cut else limit + 1)  # no more: it may inflate past the size it claims
        try:
            with lock, archive.open(info) as member:
                return _within(member.read(wanted), limit, name)
        except UserError:
            raise
        except Exception as error:  # as for the directory
            raise UserError(f"{name} cannot be read: {error}; make the zip again, without a password") from error

    return read
