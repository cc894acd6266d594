"""Check a packed folder from its bytes, without trusting any index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config import SPLITS
from pipeline.errors import UserError
from pipeline.packing.staging import STAGING
from pipeline.remote import RemoteError
from pipeline.shards.index import OF_TAR, SCHEMA, Index, Progress, build_index, index_path, read_index
from pipeline.shards.manifest import MANIFEST, Manifest, ShardEntry, read_manifest
from pipeline.shards.mirror import names_in
from pipeline.shards.truth import read_truth, truth_of


@dataclass(frozen=True)
class VerifyReport:
    """Every problem of a packed folder; none if it is sound."""

    problems: tuple[str, ...]
    num_shards: int
    num_samples: int


def verify(folder: Path, *, workers: int = 0, progress: Progress | None = None) -> VerifyReport:
    """Read every shard in full: sha256, counts, keys, labels, decodability, index, truth, overlap, listed twice.

    Raises:
        UserError: there is no readable manifest.
    """
    manifest = read_manifest(folder)
    problems: list[str] = []
    indexes: dict[str, Index] = {}
    total = sum(entry.num_samples for entry in manifest.shards)
    done = 0
    for entry in manifest.shards:
        before = done
        report = (lambda count, _, before=before: progress(before + count, total)) if progress else None
        try:
            indexes[entry.name] = build_index(folder / f"{entry.name}.tar", workers=workers, progress=report)
        except RemoteError:
            raise
        except UserError as error:
            problems.append(str(error))
            continue
        problems += _check_shard(folder, entry, indexes[entry.name], manifest.classes)
        done += entry.num_samples
    problems += _listed_twice(manifest)
    problems += _overlaps(manifest, indexes)
    problems += _strangers(folder, manifest)
    num_used = sum(len(_used(entry, indexes[entry.name])) for entry in manifest.shards if entry.name in indexes)
    return VerifyReport(tuple(problems), len(manifest.shards), num_used)


def _check_shard(folder: Path, entry: ShardEntry, index: Index, classes: tuple[str, ...]) -> Iterator[str]:
    num_classes = len(classes)
    tar = folder / f"{entry.name}.tar"
    if index.sha256 != entry.sha256:
        yield f"{tar}: sha256 is {index.sha256}, the manifest says {entry.sha256}"
    if index.tar_size != entry.num_bytes:
        yield f"{tar}: {index.tar_size} bytes, the manifest says {entry.num_bytes}"
    if len(index) != entry.num_samples:
        yield f"{tar}: {len(index)} samples, the manifest says {entry.num_samples}"
    if entry.moved and not (entry.split == "unlabeled" and 0 <= min(entry.moved) <= max(entry.moved) < len(index)):
        yield f"{MANIFEST}: {entry.name} has `moved` rows that it cannot have"
    if index.cut:
        yield index.cut
    if mixture := index.survey.mixture():
        yield f"{tar}: {mixture}"
    for row, why in sorted(index.problems.items()):
        yield f"{tar}: {index.key[row]}: {why}"
    if entry.split == "unlabeled":
        for unwanted in np.flatnonzero(index.label >= 0):
            yield f"{tar}: {index.key[int(unwanted)]}: has a .cls in an unlabeled shard"
        try:
            read_truth(truth_of(folder, entry, classes))
        except UserError as error:
            yield str(error)
    else:
        for wrong in np.flatnonzero((index.label < 0) | (index.label >= num_classes)):
            yield f"{tar}: {index.key[int(wrong)]}: label {index.label[wrong]} is out of range ({num_classes} classes)"
    stored = read_index(index_path(tar))
    if stored is not None and (unlike := _unlike(stored, index)):
        yield f"{tar}: its stored index differs from its bytes in {', '.join(unlike)}; delete {index_path(tar).name}"


def _unlike(stored: Index, index: Index) -> list[str]:
    """The columns in which a stored index is not that of the tar's bytes."""
    names = [name for name in SCHEMA.names if list(getattr(stored, name)) != list(getattr(index, name))]
    return [*names, *(name for name in OF_TAR if getattr(stored, name) != getattr(index, name))]


def _listed_twice(manifest: Manifest) -> Iterator[str]:
    """Shards whose images would count twice: equal names, or equal bytes under two names."""
    for what in ("name", "sha256"):
        shards: dict[str, list[str]] = {}
        for entry in manifest.shards:
            shards.setdefault(getattr(entry, what), []).append(entry.name)
        for names in shards.values():
            if len(names) > 1 and (what == "name" or len(set(names)) == len(names)):
                yield f"{MANIFEST}: {' and '.join(names)} are one shard, listed {len(names)} times"


def _overlaps(manifest: Manifest, indexes: dict[str, Index]) -> Iterator[str]:
    for first, second in itertools.combinations(SPLITS, 2):
        contents = [
            np.concatenate([np.empty(0, "S16"), *(_used(e, indexes[e.name]) for e in entries if e.name in indexes)])
            for entries in (manifest.of_split(first), manifest.of_split(second))
        ]
        shared = np.intersect1d(contents[0], contents[1])
        if count := int((shared != b"").sum()):
            yield f"{first} and {second} share {count} images"


def _used(entry: ShardEntry, index: Index) -> npt.NDArray[np.bytes_]:
    """The contents of the samples that count."""
    return np.delete(index.content, [row for row in entry.moved if row < len(index)])


def _strangers(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {f"{entry.name}.tar" for entry in manifest.shards}
    for name in names_in(folder):
        if name.endswith(".tar") and name not in listed:
            yield f"{folder / name}: not listed in the manifest, so it is never read; move it away"
    if (folder / STAGING).exists():
        yield f"{folder / STAGING}: a pack was killed; type its command again to complete or clear it"
