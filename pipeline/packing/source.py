"""SOURCE of `selftrain pack`: a folder, tar or zip of images as people have them."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tarfile
import threading
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from pipeline.errors import UserError
from pipeline.files import parsing
from pipeline.shards.tar import inside_path, open_shard, walk

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".npy"}
)
MAX_FILE_BYTES = 1 << 28  # no photograph, and a zip member may claim terabytes

_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})
_SPLIT_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "labeled", "unlabeled", "extra"}
)
_PLAIN = re.compile(r"[A-Za-z0-9_/ -]+")


@dataclass(frozen=True)
class Source:
    """The images of a SOURCE."""

    path: Path
    names: tuple[str, ...]
    """Paths inside SOURCE, sorted, with `/`."""
    ignored: dict[str, int]
    """Number of other files by kind: `hidden` (dot files, __MACOSX, Thumbs.db) or their extension."""
    read: Callable[[str], bytes]
    """Bytes of a name; may be called by many threads. Raises UserError."""


@dataclass(frozen=True)
class Item:
    """An image of a SOURCE with its place in a shard."""

    name: str
    key: str
    class_name: str | None


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder, .tar or .zip.

    Raises:
        UserError: missing, unreadable, of another kind, with a member that points outside, or without images.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder, .tar or .zip of images")
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            files = _walk_folder(path)
            read: Callable[[str], bytes] = lambda name: _read_file(path / name)  # noqa: E731
        elif (kind := _kind_of(path)) == "tar":
            files, read = _open_tar(stack, path)
        elif kind == "zip":
            with parsing(f"{path} is a damaged zip", "copy it again"):
                files, read = _open_zip(stack.enter_context(zipfile.ZipFile(path)), path)
        else:
            raise UserError(f"{path} is neither a folder nor a .tar nor a .zip; extract it or make a .tar of it")
        yield _sift(path, files, read)


def _kind_of(path: Path) -> Literal["tar", "zip", "other"]:
    """What a file is by its first bytes. Its name does not say, nor its last bytes, which may be an archive inside."""
    with _regular(path) as file:
        head = file.read(tarfile.BLOCKSIZE)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        # An empty tar is zeros. Of a file that is called a tar, the reader of tars says what is wrong.
        return "tar" if path.suffix.lower() == ".tar" or (head and not head.strip(b"\0")) else "other"
    return "tar"


@contextlib.contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file: a pipe would wait for ever, and a device may have no end.

    Raises:
        UserError: it is none, or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a pipe or a device and no file; remove it")
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; fix it (chmod +r) or remove it") from error


def _sift(path: Path, files: Sequence[str], read: Callable[[str], bytes]) -> Source:
    names: list[str] = []
    ignored: Counter[str] = Counter()
    for name in files:
        suffix = os.path.splitext(name)[1].lower()
        if any(part.startswith(".") or part.lower() in _LITTER for part in name.split("/")):
            ignored["hidden"] += 1
        elif suffix in EXTENSIONS:
            names.append(name)
        else:
            ignored[suffix or "no extension"] += 1
    if not names:
        found = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(4)) or "it is empty"
        raise UserError(f"{path} holds no images ({' '.join(sorted(EXTENSIONS))}); found: {found}")
    return Source(path, tuple(sorted(names)), dict(ignored), read)


def _walk_folder(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}; fix its permissions (chmod +rx)")

    files: list[str] = []
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is a link to a folder that is in {root} already; remove the link")
        seen.add(real)
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        files += names if relative == "." else [f"{relative}/{name}" for name in names]
    return files


def _read_file(path: Path) -> bytes:
    with _regular(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; shrink it")
    return data


def _open_tar(stack: contextlib.ExitStack, path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    places: dict[str, tuple[int, int]] = {}
    for name, offset, size in walk(path):
        inside = inside_path(name, path)
        if inside in places:
            raise UserError(f"{path} holds {inside} twice; make the tar again from a folder")
        places[inside] = (offset, size)
    descriptor = stack.enter_context(open_shard(path))

    def read(name: str) -> bytes:
        offset, size = places[name]
        if size > MAX_FILE_BYTES:
            raise UserError(f"{path}: {name} is larger than {MAX_FILE_BYTES >> 20} MiB; shrink it")
        return os.pread(descriptor, size, offset)

    return list(places), read


def _open_zip(archive: zipfile.ZipFile, path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    # Some programs of Windows write `\\` between folders, which the format does not allow in names.
    members = [info for info in archive.infolist() if not info.is_dir() and not info.filename.endswith("\\")]
    infos = {inside_path(info.filename.replace("\\", "/"), path): info for info in members}
    lock = threading.Lock()  # ZipFile shares one file position

    def read(name: str) -> bytes:
        if infos[name].file_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: {name} is larger than {MAX_FILE_BYTES >> 20} MiB; shrink it")
        if infos[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{path}: {name} is compressed in a way that is not read here (method {infos[name].compress_type}); "
                "extract the zip and give the folder"
            )
        try:
            with lock, archive.open(infos[name]) as member:
                return member.read(infos[name].file_size)  # no more: it may inflate past the size that it claims
        except Exception as error:  # damaged members raise nearly anything, zlib.error to struct.error
            raise UserError(
                f"{path}: {name} cannot be read: {error}; make the zip again, without a password"
            ) from error

    return list(infos), read


def sample_key(path: str) -> str:
    """The key of an image: its path without extension; dots, percent signs and odd bytes become %XX (reversible)."""
    stem = os.path.splitext(path)[0]
    if _PLAIN.fullmatch(stem):
        return stem
    return "".join(
        c if c.isprintable() and c not in "%." else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape"))
        for c in stem
    )


def arrange(source: Source, *, labeled: bool, known: Sequence[str]) -> list[Item]:
    """Give every image its key and, when `labeled`, its class: the first folder below the class root.

    The class root is SOURCE, or the folder below it that holds everything (as in a tar of `train/CLASS/x.jpg`).
    `known` class names are never taken for such a folder. Returned in the order of the keys. Names of classes are equal
    if their normal forms (NFC) are: a Mac writes é as two characters.

    Raises:
        UserError: two images with one key, an image outside the class folders, or folders that look like splits.
    """
    paths = [name.split("/") for name in source.names]
    as_known = {_nfc(name): name for name in known}
    depth = 0
    while all(len(p) > depth + 1 + labeled for p in paths) and len({p[depth] for p in paths}) == 1:
        if _nfc(paths[0][depth]) in as_known:
            break
        depth += 1
    items: dict[str, Item] = {}
    for name, parts in zip(source.names, paths, strict=True):
        inside = parts[depth:]
        if labeled and len(inside) < 2:
            raise UserError(_explain_flat(source, name))
        key = sample_key("/".join(inside))
        if key in items:
            raise UserError(f"{source.path}: {items[key].name} and {name} would share the key `{key}`; rename one")
        items[key] = Item(name, key, as_known.get(_nfc(inside[0]), _nfc(inside[0])) if labeled else None)
    folders = {item.class_name for item in items.values() if item.class_name}
    for folder in folders:
        if not folder.isprintable():  # line breaks, or bytes that are not UTF-8: no classes file could list it
            raise UserError(f"{source.path}: class folder {folder!r} has an unprintable name; rename it")
    if folders and all(folder.lower() in _SPLIT_NAMES for folder in folders) and not folders <= set(known):
        raise UserError(
            f"{source.path} holds {', '.join(sorted(folders))}, which look like splits, not classes; "
            "pack each by itself with --split, or name them in --classes if they are classes"
        )
    return [items[key] for key in sorted(items)]


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _explain_flat(source: Source, name: str) -> str:
    if ".cls" in source.ignored:
        return f"{source.path} holds .cls files, so it is a shard already; name it in the config, e.g. data.labeled"
    return (
        f"{source.path}: {name} is in no class folder; move it to CLASS/{PurePosixPath(name).name}, "
        "or pack with --split unlabeled"
    )
