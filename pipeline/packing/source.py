"""SOURCE of `selftrain pack`: a folder, tar, zip or Parquet files of images as people have them."""

from __future__ import annotations

import contextlib
import os
import shlex
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.packing.archives import (
    COMPRESSED,
    Files,
    open_compressed_tar,
    open_folder,
    open_tar,
    open_zip,
    read_regular,
)
from pipeline.packing.parquet import MAGIC, PARQUET, ParquetImages
from pipeline.shards.magic import HEAD, describe, image_kind

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".npy"}
    | {".avif", ".heic", ".heif", ".jxl", ".jp2"}  # which are not read, so they are bad images and no other files
)
MAX_FILE_BYTES = 1 << 28  # no photograph, and a zip member may claim terabytes

_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"})


@dataclass(frozen=True)
class Source:
    """The files of a SOURCE: every one is an image or ignored."""

    path: Path
    names: tuple[str, ...]
    """The images, as sorted paths inside SOURCE, with `/`. Some may be bad."""
    ignored: dict[str, str]
    """The other files, by the kind of each: `hidden` (dot files, __MACOSX, Thumbs.db) or its extension."""
    empty_folders: tuple[str, ...]
    """Folders without an image, the topmost ones only. Archives do not tell."""
    files: Files
    parquet: ParquetImages | None = None
    """Where the images are rows of Parquet files, which know labels too."""

    def read(self, name: str) -> bytes:
        """The bytes of a file; may be called by many threads. Raises UserError."""
        return self.files.read(name, MAX_FILE_BYTES)


@contextlib.contextmanager
def open_source(path: Path, zip_encoding: str | None = None) -> Iterator[Source]:
    """Open a folder, .tar, .tgz (or in bzip2, xz), .zip or .parquet; of a folder without images, its .parquet files.

    Args:
        path: The folder or file.
        zip_encoding: The code page of a zip's names that are not in UTF-8, such as shift_jis.

    Raises:
        UserError: missing, unreadable, of another kind, with a member that points outside, with two of one name, or
            without images.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder, .tar, .zip or .parquet of images")
    with contextlib.ExitStack() as stack:
        folders: list[str] = []
        if path.is_dir():
            names, folders = walk_folder(path)
            files = open_folder(path, names)
        elif read_regular(path, HEAD, cut=True).startswith(MAGIC):
            yield _of_parquet(path, ParquetImages(path.parent, [path.name]))
            return
        else:
            files = stack.enter_context(_open_archive(path, zip_encoding))
        yield _sift(path, files, folders)


def _open_archive(path: Path, zip_encoding: str | None) -> contextlib.AbstractContextManager[Files]:
    """What a file is by its first bytes decides. Its name does not say, nor its last bytes."""
    head = read_regular(path, HEAD, cut=True)
    if head.startswith(COMPRESSED):
        return open_compressed_tar(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return open_zip(path, zip_encoding)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        # An empty tar is zeros. Of a file that is called a tar, the reader of tars says what is wrong.
        if path.suffix.lower() != ".tar" and (head.strip(b"\0") or not head):
            what = "a single image" if image_kind(head) else describe(head) if head else "empty"
            raise UserError(
                f"{path} is {what}; SOURCE must be a folder, .tar, .tgz, .zip or .parquet of images"
            ) from error
    return open_tar(path)


def _sift(path: Path, files: Files, folders: list[str]) -> Source:
    names, ignored = sift(files)
    tables = [name for name, kind in ignored.items() if kind == PARQUET]
    if not names and tables and path.is_dir():
        others = {name: kind for name, kind in ignored.items() if kind != PARQUET}
        return _of_parquet(path, ParquetImages(path, tables), others, files)
    if not names:
        raise UserError(f"{path} holds no images; {_found(path, ignored)}")
    full = {os.path.dirname(name) for name in names} if folders else set()
    full |= {"", *(str(parent) for folder in full for parent in PurePosixPath(folder).parents)}
    empty = [folder for folder in folders if folder not in full and not is_litter(folder)]
    topmost = [folder for folder in empty if os.path.dirname(folder) in full]
    return Source(path, tuple(sorted(names)), ignored, tuple(topmost), files)


def sift(files: Files) -> tuple[list[str], dict[str, str]]:
    """Tell images, which may be bad ones, from other files, with the kind of each."""
    names: list[str] = []
    ignored: dict[str, str] = {}
    for name in files.names:
        suffix = os.path.splitext(name)[1].lower()
        if is_litter(name):
            ignored[name] = "hidden"
        elif suffix in EXTENSIONS or _is_image(files, name):
            names.append(name)
        else:
            ignored[name] = suffix or "no extension"
    return names, ignored


def _of_parquet(
    path: Path, parquet: ParquetImages, ignored: dict[str, str] | None = None, files: Files | None = None
) -> Source:
    """The rows as images; `ignored` are the other files of a folder, which `files` reads, such as a table of labels."""
    names = tuple(parquet.names())
    if not names:
        raise UserError(f"{path} holds no images; the Parquet files have no rows")

    def read(name: str, limit: int, *, cut: bool = False) -> bytes:
        reads = files.read if files and name in (ignored or ()) else parquet.read
        return reads(name, limit, cut=cut)

    return Source(path, names, ignored or {}, (), Files(names, read), parquet)


def _is_image(files: Files, name: str) -> bool:
    try:
        return image_kind(files.read(name, HEAD, cut=True)) is not None
    except UserError:  # a pipe, or a file of somebody else's that is not called an image
        return False


def is_litter(name: str) -> bool:
    """Whether a path is that of a hidden file, or of what systems put beside images."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in name.split("/"))


def _found(path: Path, ignored: dict[str, str]) -> str:
    kinds = Counter(sorted(ignored.values())).most_common(4)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds) or "it is empty"
    archives = [name for name, kind in ignored.items() if kind in {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}]
    if archives and path.is_dir():
        return f"found: {counts}; give an archive itself, such as {shlex.quote(str(path / archives[0]))}"
    return f"found: {counts}; give a folder, .tar, .zip or .parquet of images"


def walk_folder(root: Path) -> tuple[list[str], list[str]]:
    """All files and all folders below, relative to `root`. Raises UserError for what cannot be listed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be listed: {error.strerror}; fix its permissions (chmod +rx)")

    files: list[str] = []
    folders: list[str] = []
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is a link to a folder that is in {root} already; remove the link")
        seen.add(real)
        subfolders.sort()
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else f"{relative}/"
        files += [f"{prefix}{name}" for name in names]
        folders += [f"{prefix}{name}" for name in subfolders]
    return files, folders
