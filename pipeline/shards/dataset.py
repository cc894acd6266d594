"""A data set: all samples of one split, one row per sample, shard after shard."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I32Array, I64Array, U64Array
from pipeline.config import SPLITS, Data, Split
from pipeline.errors import UserError
from pipeline.shards.index import Index, index_path, keep_rows, load_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.members import scan_members
from pipeline.shards.mirror import fetch_together
from pipeline.shards.split import bad_samples, check_values, find_tars, folder_of
from pipeline.shards.truth import Truth, truth_as
from pipeline.stages.fingerprint import digest

log = logging.getLogger("selftrain.shards")

Progress = Callable[[str, int, int], None]
"""Called with the shard's name, samples done and samples in all while an index is made."""


@dataclass(frozen=True)
class Shard:
    """One tar of a data set."""

    name: str
    """Unique in the data set, and a legal file name: label files are called after it."""
    path: Path
    sha256: str
    """Of the tar's bytes; where rows have moved to another split, of them and those rows."""
    start: int
    """The data set's row of the first sample."""
    num_rows: int
    index: Index
    truth: Truth | None = None
    """Where pack may have kept true labels apart."""
    kept: I64Array | None = None
    """Which samples of the tar are used, where bad ones were skipped or some have moved to another split."""


@dataclass(frozen=True)
class Dataset:
    """All samples of one split."""

    name: Split
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Bad samples that `data.bad_images: skip` left out, as `TAR: KEY`, and cut tars, with the reason."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Members of foreign tars that belong to no sample, by extension."""

    def __len__(self) -> int:
        return int(self.shard_starts[-1])

    @functools.cached_property
    def shard_starts(self) -> I64Array:
        """First row of each shard and, last, the number of rows; [S+1]."""
        return np.cumsum([0, *(shard.num_rows for shard in self.shards)], dtype=np.int64)

    @functools.cached_property
    def labels(self) -> I32Array:
        """Class ids [N]; -1 where there is none, and everywhere in an unlabeled split."""
        if self.name == "unlabeled":
            return np.full(len(self), -1, np.int32)
        return np.concatenate([shard.index.label for shard in self.shards])

    @functools.cached_property
    def contents(self) -> npt.NDArray[np.bytes_]:
        """Content hashes [N], S16."""
        return np.concatenate([shard.index.content for shard in self.shards])

    @functools.cached_property
    def ids(self) -> U64Array:
        """Sample ids [N]: blake2b-64 of `split/shard/key`."""
        ids = np.empty(len(self), np.uint64)
        for shard in self.shards:
            stem = hashlib.blake2b(f"{self.name}/{shard.name}/".encode("utf-8", "surrogateescape"), digest_size=8)
            for row, key in enumerate(shard.index.key, start=shard.start):
                state = stem.copy()
                state.update(key.encode("utf-8", "surrogateescape"))
                ids[row] = int.from_bytes(state.digest(), "little")
        return ids

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of everything that results can depend on: the shards' bytes, names, rows used, and the classes."""
        shards = [[shard.name, shard.sha256, shard.num_rows] for shard in self.shards]
        return digest({"split": self.name, "classes": self.classes, "shards": shards})

    def shard_of(self, row: int) -> Shard:
        """The shard that holds a row."""
        return self.shards[int(np.searchsorted(self.shard_starts, row, side="right")) - 1]

    def key(self, row: int) -> str:
        """`shard/key` of a row, for people to find the sample."""
        shard = self.shard_of(row)
        return f"{shard.name}/{shard.index.key[row - shard.start]}"

    def truth(self) -> I32Array | None:
        """True labels [N] for reports, -1 where unknown; None if nothing is known. Never for training or selection.

        Of unlabeled images, what a carve kept apart in a packed folder, by class name: the ids of other folders are
        not ours, nor are those in the .cls files of foreign tars.
        """
        if self.name == "unlabeled":
            truth = np.concatenate([truth_as(s.truth, s.kept, s.num_rows, self.classes) for s in self.shards])
        else:
            truth = self.labels
        return truth if (truth >= 0).any() else None


# ------------------------------------------------------------------------------------------------------------- opening


def has_test(data: Data) -> bool:
    """Whether there are test images.

    Raises:
        UserError: `data.root` is no packed folder.
    """
    root = None if data.root is None else folder_of(data.root, data)
    return bool(data.test) or (root is not None and bool(read_manifest(root).of_split("test")))


def open_split(data: Data, split: Split, *, verify: bool = False, progress: Progress | None = None) -> Dataset:
    """Open one split: its shards in `data.root` and the tars and folders named in `data.<split>`.

    With `verify` every shard is read in full and compared with the manifest's sha256.

    Raises:
        UserError: nothing to open, a missing or changed shard, other classes than the manifest's, a labeled sample
            without a label, a label out of range, or a bad image that the config does not allow to skip.
    """
    tars, classes = find_tars(data, split)
    if not tars:
        where = f"{data.root} has no {split} shards" if data.root else f"neither data.root nor data.{split} is set"
        raise UserError(
            f"there is no {split} split: {where}; pack one with --split {split}, or name tars in data.{split}"
        )
    shards: list[Shard] = []
    indexes: list[Index] = []
    skipped: dict[str, str] = {}
    start = 0
    fetch_together(index_path(tar.path) for tar in tars)
    for tar in tars:
        report = functools.partial(progress, tar.name) if progress else None
        index = load_index(
            tar.path, sha256=tar.sha256, cache_dir=data.cache_dir, workers=data.decode_workers, progress=report
        )
        bad = bad_samples(tar, index, split, classes, skip=data.bad_images == "skip", verify=verify)
        indexes.append(index)
        skipped |= {f"{tar.path}: {index.key[row]}": why for row, why in bad.items()}
        skipped |= {str(tar.path): index.cut} if index.cut else {}
        kept = None
        if bad or tar.moved:
            kept = np.setdiff1d(np.arange(len(index)), [*bad, *tar.moved])
            index = keep_rows(index, kept)
        if not len(index):  # nothing to be labeled, embedded or cached
            continue
        # Labels and caches are addressed by it, and hold the rows that are left.
        content = digest({"tar": index.sha256, "moved": tar.moved}) if tar.moved else index.sha256
        shards.append(Shard(tar.name, tar.path, content, start, len(index), index, tar.truth, kept))
        start += len(index)
    check_values(split, tars, indexes)
    if start == 0:
        raise UserError(
            f"the {split} split is empty: no usable image in {', '.join(str(tar.path) for tar in tars[:3])}"
        )
    ignored = sum((Counter(index.ignored) for index in indexes), Counter[str]())
    return Dataset(split, classes, tuple(shards), skipped, dict(ignored))


def warn_of_left_out(dataset: Dataset) -> None:
    """Say how much of a data set's tars is not used."""
    if dataset.skipped:
        log.warning("data.bad_images is skip: %d bad samples of %s are left out", len(dataset.skipped), dataset.name)
    if dataset.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in dataset.ignored.items())
        log.warning("members of %s tars that belong to no sample are not used: %s", dataset.name, kinds)


def left_out(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Everything of a data set's tars that is not used, as (`TAR: MEMBER`, why), also members that no sample has."""
    yield from dataset.skipped.items()
    for shard in dataset.shards:
        if shard.index.ignored:
            yield from ((f"{shard.path}: {name}", "belongs to no sample") for name in scan_members(shard.path)[1])


# -------------------------------------------------------------------------------------------------------- disjointness


def check_disjoint(datasets: Mapping[Split, Dataset]) -> None:
    """Check that no image occurs in two splits, by content, whatever its name or file format.

    Raises:
        UserError: names both splits, the number of images they share, and one of them by both its keys.
    """
    for first, second in itertools.combinations([split for split in SPLITS if split in datasets], 2):
        a, b = datasets[first], datasets[second]
        shared, rows_a, rows_b = np.intersect1d(a.contents, b.contents, return_indices=True)
        if len(shared):
            raise UserError(
                f"{first} and {second} share {len(shared)} images, e.g. {a.key(int(rows_a[0]))} and "
                f"{b.key(int(rows_b[0]))}; remove them from one, or carve one source with --labels, which keeps "
                "equal images together"
            )
