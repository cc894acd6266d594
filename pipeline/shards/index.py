"""The index of a shard: where each sample lies, its key, label and content. One sample is then one pread.

It is stored as the table `SHARD.selftrain.arrow` beside the tar, or in the cache folder where that is read-only. It is
made anew when the tar's bytes changed. Making it decodes every image once, to find bad ones and to hash contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import I32Array, I64Array
from pipeline.errors import UserError
from pipeline.shards.decode import DECODER_VERSION, content_hash, decode_sample
from pipeline.shards.table import read_table, write_table
from pipeline.shards.tar import CutTarError, inside_path, open_shard, walk
from pipeline.stages.fingerprint import digest_file
from pipeline.threads import map_chunks

FORMAT = f"selftrain-index-1, decoder {DECODER_VERSION}"
SCHEMA = pa.schema(
    {"offset": pa.int64(), "size": pa.int64(), "label": pa.int32(), "content": pa.binary(16), "key": pa.binary()}
)
OF_TAR = ("problems", "cut", "sha256", "tar_size")
"""The fields of an index that are true of the tar wherever it lies; its clock is not one."""
BadImages = Literal["error", "skip"]
Progress = Callable[[int, int], None]

# A key ends at the first dot of the file name: the rule of webdataset.
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "npy"})


@dataclass(frozen=True)
class Index:
    """The samples of one tar in file order, one row per sample: the columns of SCHEMA, then what is true of the tar."""

    offset: I64Array
    size: I64Array
    label: I32Array
    """-1 where there is no .cls."""
    content: npt.NDArray[np.bytes_]
    """S16, see decode.content_hash; empty where the image is bad."""
    key: Sequence[str]
    problems: Mapping[int, str]
    """Row -> why the sample is bad."""
    cut: str
    """Why the tar ends early; empty if it is whole."""
    sha256: str
    tar_size: int
    tar_mtime_ns: int

    def __len__(self) -> int:
        return len(self.offset)


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
    name = hashlib.blake2b(bytes(tar.resolve()), digest_size=16).hexdigest()
    places = (index_path(tar), cache_folder(cache_dir) / "index" / f"{name}.arrow")
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

    With `known_contents` (key -> content hash) nothing is decoded: pack has done that just before.
    """
    status = _stat(tar)
    samples, cut = _scan(tar)
    rows = list(samples.values())
    offset = np.array([sample.offset for sample in rows], np.int64)
    size = np.array([sample.size for sample in rows], np.int64)
    problems = {row: sample.problem for row, sample in enumerate(rows) if sample.problem}
    if known_contents is None:
        contents = _hash_all(tar, offset, size, problems, workers, progress)
    else:
        contents = [known_contents[key] for key in samples]
    return Index(
        offset=offset,
        size=size,
        label=np.array([sample.label for sample in rows], np.int32),
        content=np.array(contents, "S16"),
        key=list(samples),
        problems=problems,
        cut=cut,
        sha256=digest_file(tar),
        tar_size=status.st_size,
        tar_mtime_ns=status.st_mtime_ns,
    )


def index_path(tar: Path) -> Path:
    """Where the index of a tar is, unless the folder is read-only."""
    return tar.with_name(f"{tar.stem}.selftrain.arrow")


def write_index(path: Path, index: Index) -> None:
    """Write an index file atomically."""
    of_tar = {f.name: getattr(index, f.name) for f in fields(Index) if f.name not in SCHEMA.names}
    columns = [getattr(index, name) for name in SCHEMA.names]
    write_table(path, SCHEMA, {"format": FORMAT, "tar": json.dumps(of_tar)}, columns, sealed=True)


def read_sample(descriptor: int, index: Index, row: int) -> bytes:
    """The bytes of one image."""
    return os.pread(descriptor, int(index.size[row]), int(index.offset[row]))


def keep_rows(index: Index, keep: I64Array) -> Index:
    """The index of some of the samples, in the order of `keep`. Its problems are gone: `keep` leaves out bad ones."""
    arrays = {name: getattr(index, name)[keep] for name in SCHEMA.names if name != "key"}
    return replace(index, **arrays, key=[index.key[row] for row in keep], problems={})


def cache_folder(cache_dir: Path | None) -> Path:
    """Where decoded images and the indexes of read-only tars live: the config's choice, or the user's cache.

    Raises:
        UserError: the user has no home folder.
    """
    if cache_dir is not None:
        return cache_dir
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selftrain"
    except RuntimeError as error:
        raise UserError("this user has no home folder for the cache; set data.cache_dir, or XDG_CACHE_HOME") from error


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
    with open_shard(tar) as descriptor:
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
    problems: dict[int, str],
    workers: int,
    progress: Progress | None,
) -> list[bytes]:
    contents: list[bytes] = []
    with open_shard(tar) as descriptor:

        def hash_one(row: int) -> bytes:
            if row in problems:
                return b""
            try:
                data = os.pread(descriptor, int(size[row]), int(offset[row]))
                return content_hash(decode_sample(data, "the sample"))
            except UserError as error:
                problems[row] = str(error)
                return b""

        for hashes in map_chunks(range(len(offset)), hash_one, workers=workers):
            contents += hashes
            if progress:
                progress(len(contents), len(offset))
    return contents


# ------------------------------------------------------------------------------------------------------- stored indexes


def read_index(path: Path) -> Index | None:
    """A stored index; None if it is absent, damaged or of another version, since the tar can make it again."""
    try:
        table = read_table(path, "")
        if not table.schema.equals(SCHEMA) or table.metadata["format"] != FORMAT:
            return None
        of_tar = json.loads(table.metadata["tar"])
        of_tar["problems"] = {int(row): why for row, why in of_tar["problems"].items()}
        return Index(*table.columns, **of_tar)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


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
