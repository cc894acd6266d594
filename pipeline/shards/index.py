"""The index of a shard: where each sample lies, its key, label and content. One sample is then one pread.

It is stored as the table `SHARD.selftrain.arrow` beside the tar, or in the cache folder where that is read-only. It is
made anew when the tar's bytes changed. Making it decodes every image once, to find bad ones and to hash contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import I32Array, I64Array
from pipeline.errors import UserError
from pipeline.remote import Status
from pipeline.shards.decode import DECODER_VERSION, content_hash, read_file, to_sample
from pipeline.shards.members import scan_members
from pipeline.shards.mirror import fetched, is_remote, status_of
from pipeline.shards.table import read_table, write_table
from pipeline.shards.tar import open_shard
from pipeline.shards.values import Facts, Survey, facts_of, survey_of
from pipeline.stages.fingerprint import digest_file
from pipeline.threads import map_chunks

FORMAT = f"selftrain-index-2, decoder {DECODER_VERSION}"
SCHEMA = pa.schema(
    {"offset": pa.int64(), "size": pa.int64(), "label": pa.int32(), "content": pa.binary(16), "key": pa.binary()}
)
OF_TAR = ("problems", "ignored", "cut", "sha256", "tar_size")
"""The fields of an index that are true of the tar wherever it lies; its clock is not one."""
BadImages = Literal["error", "skip"]
Progress = Callable[[int, int], None]


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
    ignored: Mapping[str, int]
    """Number of members that belong to no sample, by extension."""
    survey: Survey
    """What is to be told about the values of its samples; of no use after `known_contents`."""
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
    sha256: str | None = None,
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Index:
    """The index of a tar: the stored one if the tar's bytes are still the same, else a new one, stored for next time.

    Bad samples are listed in `problems`, and a cut tar in `cut`; the caller decides what to do about them. A remote tar
    of a packed folder, whose `sha256` the manifest tells, is not fetched for that: its bytes are compared when they
    come.

    Raises:
        UserError: not a tar, a damaged header, or a key that points outside; or a remote one cannot be fetched.
    """
    status = _stat(tar)
    name = hashlib.blake2b(bytes(tar.resolve()), digest_size=16).hexdigest()
    places = (index_path(tar), cache_folder(cache_dir) / "index" / f"{name}.arrow")
    stored = _stored(places, status.size)
    for index in stored:
        if index.tar_mtime_ns == status.mtime_ns:
            return index
    remote = is_remote(tar)
    if remote:
        fetched(places[0])
        stored = _stored(places, status.size)
    for index in stored:
        # Copied or touched: the bytes are the same, only the clock differs.
        if index.sha256 == (sha256 if remote and sha256 else digest_file(fetched(tar))):
            return _store(replace(index, tar_mtime_ns=status.mtime_ns), places)
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
    samples, unused, cut = scan_members(tar)
    survey = Survey()
    rows = list(samples.values())
    offset = np.array([sample.offset for sample in rows], np.int64)
    size = np.array([sample.size for sample in rows], np.int64)
    problems = {row: sample.problem for row, sample in enumerate(rows) if sample.problem}
    if known_contents is None:
        contents = _hash_all(tar, list(samples), offset, size, problems, survey, workers, progress)
    else:
        contents = [known_contents[key] for key in samples]
    return Index(
        offset=offset,
        size=size,
        label=np.array([sample.label for sample in rows], np.int32),
        content=np.array(contents, "S16"),
        key=list(samples),
        problems=problems,
        ignored=dict(Counter(os.path.splitext(name)[1].lower() or "no extension" for name in unused)),
        survey=survey,
        cut=cut,
        sha256=digest_file(fetched(tar)),
        tar_size=status.size,
        tar_mtime_ns=status.mtime_ns,
    )


def index_path(tar: Path) -> Path:
    """Where the index of a tar is, unless the folder is read-only."""
    return tar.with_name(f"{tar.stem}.selftrain.arrow")


def write_index(path: Path, index: Index) -> None:
    """Write an index file atomically."""
    of_tar = {f.name: getattr(index, f.name) for f in fields(Index) if f.name not in SCHEMA.names}
    of_tar["survey"] = asdict(index.survey)
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


def _hash_all(
    tar: Path,
    keys: Sequence[str],
    offset: I64Array,
    size: I64Array,
    problems: dict[int, str],
    survey: Survey,
    workers: int,
    progress: Progress | None,
) -> list[bytes]:
    contents: list[bytes] = []
    with open_shard(tar) as descriptor:

        def hash_one(row: int) -> tuple[bytes, Facts | None]:
            if row in problems:
                return b"", None
            try:
                file = read_file(os.pread(descriptor, int(size[row]), int(offset[row])), "the sample")
                return content_hash(to_sample(file.values, "the sample")), facts_of(file)
            except UserError as error:
                problems[row] = str(error)
                return b"", None

        for chunk in map_chunks(range(len(offset)), hash_one, workers=workers):
            for content, facts in chunk:
                if facts is not None:
                    survey.add(keys[len(contents)], facts)
                contents.append(content)
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
        of_tar["survey"] = survey_of(of_tar["survey"])
        return Index(*table.columns, **of_tar)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def _stored(places: Sequence[Path], tar_size: int) -> list[Index]:
    return [index for index in map(read_index, places) if index and index.tar_size == tar_size]


def _store(index: Index, places: Sequence[Path]) -> Index:
    beside, cached = places
    place = beside if os.access(beside.parent, os.W_OK, effective_ids=True) else cached
    write_index(place, index)
    return index


def _stat(tar: Path) -> Status:
    try:
        return status_of(tar)
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from error
