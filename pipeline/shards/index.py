"""The index of a shard: where each sample lies, its key, label and content. One sample is then one pread.

Stored as `SHARD.selftrain.npz` beside the tar, or in the cache folder where that is read-only. It is made anew when
the tar's bytes changed. Making it decodes every image once, to find bad ones and to hash contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I32Array, I64Array, U8Array
from pipeline.errors import UserError
from pipeline.files import atomic_path
from pipeline.shards.decode import DECODER_VERSION, content_hash, decode_sample
from pipeline.shards.tar import CutTarError, inside_path, open_shard, walk
from pipeline.stages.fingerprint import digest_file
from pipeline.threads import map_chunks

FORMAT = 1
BadImages = Literal["error", "skip"]
Progress = Callable[[int, int], None]

_SAMPLE = re.compile(
    r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL
)  # webdataset: the key ends at the first dot of the file name
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "npy"})


@dataclass(frozen=True)
class Index:
    """The samples of one tar in file order, a row each."""

    offset: I64Array
    size: I64Array
    label: I32Array
    """-1 where there is no .cls."""
    content: npt.NDArray[np.bytes_]
    """S16, see decode.content_hash; empty where the image is bad."""
    key_end: I64Array
    key_bytes: U8Array
    """The keys one after another in UTF-8; key i ends at key_end[i]."""
    problems: Mapping[int, str]
    """Row -> why the sample is bad."""
    cut: str
    """Why the tar ends early; empty if it is whole."""
    sha256: str
    tar_size: int
    tar_mtime_ns: int

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, row: int) -> str:
        """The key of one sample."""
        begin = int(self.key_end[row - 1]) if row else 0
        return self.key_bytes[begin : self.key_end[row]].tobytes().decode("utf-8", "surrogateescape")

    def keys(self) -> Iterator[str]:
        """All keys in row order."""
        return (self.key(row) for row in range(len(self)))


def load_index(
    tar: Path,
    *,
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Index:
    """The index of a tar: the stored one if the tar's bytes are still the same, else a new one, stored for next time.

    Bad samples are listed in `problems`, and a cut tar in `cut`; the caller decides what to do about them.

    Raises:
        UserError: not a tar, a damaged header, or a key that points outside.
    """
    status = _stat(tar)
    places = [index_path(tar)]
    places.append(cache_folder(cache_dir) / "index" / f"{_digest(str(tar.resolve()))}.npz")
    stored = [index for index in map(read_index, places) if index and index.tar_size == status.st_size]
    for index in stored:
        if index.tar_mtime_ns == status.st_mtime_ns:
            return index
    for index in stored:
        if index.sha256 == digest_file(tar):  # copied or touched: the bytes are the same, only the clock differs
            return _store(replace(index, tar_mtime_ns=status.st_mtime_ns), places)
    return _store(build_index(tar, workers=workers, progress=progress), places)


def build_index(
    tar: Path,
    *,
    known_contents: Mapping[str, bytes] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Index:
    """Index a tar without reading or writing an index file.

    With `known_contents` (key -> content hash) nothing is decoded: pack has just done that.
    """
    status = _stat(tar)
    samples, cut = _scan(tar)
    rows = list(samples.values())
    offset = np.array([sample.offset for sample in rows], np.int64)
    size = np.array([sample.size for sample in rows], np.int64)
    problems = {row: sample.problem for row, sample in enumerate(rows) if sample.problem}
    if known_contents is None:
        contents = _hash_all(tar, offset, size, list(samples), problems, workers, progress)
    else:
        contents = [known_contents[key] for key in samples]
    encoded = [key.encode("utf-8", "surrogateescape") for key in samples]
    return Index(
        offset=offset,
        size=size,
        label=np.array([sample.label for sample in rows], np.int32),
        content=np.array(contents, "S16"),
        key_end=np.cumsum([len(key) for key in encoded], dtype=np.int64),
        key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        problems=problems,
        cut=cut,
        sha256=digest_file(tar),
        tar_size=status.st_size,
        tar_mtime_ns=status.st_mtime_ns,
    )


def index_path(tar: Path) -> Path:
    """Where the index of a tar is, unless the folder is read-only."""
    return tar.with_name(f"{tar.stem}.selftrain.npz")


def write_index(path: Path, index: Index) -> None:
    """Write an index file atomically."""
    arrays = {field.name: getattr(index, field.name) for field in fields(Index)}
    problems = json.dumps(list(index.problems.items())).encode()
    arrays |= {"problems": np.frombuffer(problems, np.uint8), "version": np.array([FORMAT, DECODER_VERSION])}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_sample(descriptor: int, index: Index, row: int) -> bytes:
    """The bytes of one image."""
    return os.pread(descriptor, int(index.size[row]), int(index.offset[row]))


def keep_rows(index: Index, keep: I64Array) -> Index:
    """The index of some of the samples, in the order of `keep`."""
    encoded = [index.key(int(row)).encode("utf-8", "surrogateescape") for row in keep]
    return replace(
        index,
        offset=index.offset[keep],
        size=index.size[keep],
        label=index.label[keep],
        content=index.content[keep],
        key_end=np.cumsum([len(key) for key in encoded], dtype=np.int64),
        key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        problems={},
    )


def cache_folder(cache_dir: Path | None) -> Path:
    """Where decoded images and the indexes of read-only tars live: the config's choice, or the user's cache."""
    if cache_dir is not None:
        return cache_dir
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selftrain"


# ------------------------------------------------------------------------------------------------------------ scanning


@dataclass
class _Sample:
    offset: int = 0
    size: int = 0
    label: int = -1
    problem: str = "no image"


def _scan(tar: Path) -> tuple[dict[str, _Sample], str]:
    samples: dict[str, _Sample] = {}
    seen: set[str] = set()
    cut = ""
    descriptor = open_shard(tar)
    try:
        for name, offset, size in walk(tar):
            match = _SAMPLE.fullmatch(inside_path(name, tar))
            if match is None:
                continue
            key, extension = match[1], match[2].lower()
            if extension not in _IMAGES and extension != "cls":
                continue
            sample = samples.setdefault(key, _Sample())
            twice = f"{key}.{extension}" in seen
            seen.add(f"{key}.{extension}")
            if twice:
                sample.problem = f"duplicate key: {key}.{extension} is there twice"
            elif extension == "cls":
                _set_label(sample, os.pread(descriptor, min(size, 64), offset))
            elif sample.size or sample.offset:
                sample.problem = "two images with one key"
            else:
                sample.offset, sample.size = offset, size
                sample.problem = "" if sample.problem == "no image" else sample.problem
    except CutTarError as error:
        cut = str(error)
    finally:
        os.close(descriptor)
    return samples, cut


def _set_label(sample: _Sample, data: bytes) -> None:
    text = data.strip()
    if text.isdigit() and int(text) < 1 << 31:
        sample.label = int(text)
    else:
        sample.problem = f"label {text.decode(errors='replace')!r} is not a class id (0, 1, ...)"


def _hash_all(
    tar: Path,
    offset: I64Array,
    size: I64Array,
    keys: Sequence[str],
    problems: dict[int, str],
    workers: int,
    progress: Progress | None,
) -> list[bytes]:
    descriptor = open_shard(tar)

    def hash_one(row: int) -> bytes:
        if row in problems:
            return b""
        try:
            data = os.pread(descriptor, int(size[row]), int(offset[row]))
            return content_hash(decode_sample(data, "the sample"))
        except UserError as error:
            problems[row] = str(error)
            return b""

    contents: list[bytes] = []
    try:
        for hashes in map_chunks(range(len(keys)), hash_one, workers=workers):
            contents += hashes
            if progress:
                progress(len(contents), len(keys))
    finally:
        os.close(descriptor)
    return contents


# ------------------------------------------------------------------------------------------------------- stored indexes


def read_index(path: Path) -> Index | None:
    """A stored index; None if it is absent, damaged or of another version, since the tar can make it again."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if stored["version"].tolist() != [FORMAT, DECODER_VERSION]:
                return None
            arrays = {field.name: stored[field.name] for field in fields(Index)}
            problems = {int(row): str(why) for row, why in json.loads(arrays["problems"].tobytes())}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    scalars = {"cut": str(arrays["cut"]), "sha256": str(arrays["sha256"])}
    sizes = {name: int(arrays[name]) for name in ("tar_size", "tar_mtime_ns")}
    return Index(**{**arrays, **scalars, **sizes, "problems": problems})


def _store(index: Index, places: Sequence[Path]) -> Index:
    beside, cached = places
    place = beside if os.access(beside.parent, os.W_OK, effective_ids=True) else cached
    write_index(place, index)
    return index


def _stat(tar: Path) -> os.stat_result:
    try:
        return tar.stat()
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
