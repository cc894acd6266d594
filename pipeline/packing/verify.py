"""Check a packed folder from its bytes, without trusting any index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import SPLITS
from pipeline.errors import UserError
from pipeline.packing.staging import STAGING
from pipeline.shards.index import Index, Progress, build_index, index_path, read_index
from pipeline.shards.manifest import Manifest, ShardEntry, read_manifest


@dataclass(frozen=True)
class VerifyReport:
    """Every problem of a packed folder; none if it is sound."""

    problems: tuple[str, ...]
    num_shards: int
    num_samples: int


def verify(folder: Path, *, workers: int = 0, progress: Progress | None = None) -> VerifyReport:
    """Read every shard in full: sha256, counts, keys, labels, decodability, index, truth, and overlap of splits.

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
        except UserError as error:
            problems.append(str(error))
            continue
        problems += _check_shard(folder, entry, indexes[entry.name], len(manifest.classes))
        done += entry.num_samples
    problems += _overlaps(manifest, indexes)
    problems += _strangers(folder, manifest)
    return VerifyReport(tuple(problems), len(manifest.shards), sum(map(len, indexes.values())))


def _check_shard(folder: Path, entry: ShardEntry, index: Index, num_classes: int) -> Iterator[str]:
    tar = folder / f"{entry.name}.tar"
    if index.sha256 != entry.sha256:
        yield f"{tar}: sha256 is {index.sha256}, the manifest says {entry.sha256}"
    if index.tar_size != entry.num_bytes:
        yield f"{tar}: {index.tar_size} bytes, the manifest says {entry.num_bytes}"
    if len(index) != entry.num_samples:
        yield f"{tar}: {len(index)} samples, the manifest says {entry.num_samples}"
    if index.cut:
        yield index.cut
    for row, why in sorted(index.problems.items()):
        yield f"{tar}: {index.key[row]}: {why}"
    if entry.split == "unlabeled":
        for unwanted in np.flatnonzero(index.label >= 0):
            yield f"{tar}: {index.key[int(unwanted)]}: has a .cls in an unlabeled shard"
        yield from _check_truth(folder / "truth" / f"{entry.name}.npy", entry, num_classes)
    else:
        for wrong in np.flatnonzero((index.label < 0) | (index.label >= num_classes)):
            yield f"{tar}: {index.key[int(wrong)]}: label {index.label[wrong]} is out of range ({num_classes} classes)"
    stored = read_index(index_path(tar))
    if stored is not None and not (
        list(stored.key) == list(index.key)
        and np.array_equal(stored.content, index.content)
        and np.array_equal(stored.offset, index.offset)
    ):
        yield f"{tar}: its stored index differs from its bytes; delete {index_path(tar).name}"


def _check_truth(path: Path, entry: ShardEntry, num_classes: int) -> Iterator[str]:
    if not path.exists():
        return
    try:
        truth = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        yield f"{path}: cannot be read: {error}"
        return
    if truth.dtype != np.int32 or truth.shape != (entry.num_samples,):
        yield f"{path}: {truth.dtype} {list(truth.shape)} instead of int32 [{entry.num_samples}]"
    elif ((truth < -1) | (truth >= num_classes)).any():
        yield f"{path}: labels out of range ({num_classes} classes)"


def _overlaps(manifest: Manifest, indexes: dict[str, Index]) -> Iterator[str]:
    for first, second in itertools.combinations(SPLITS, 2):
        contents = [
            np.concatenate([np.empty(0, "S16"), *(indexes[e.name].content for e in entries if e.name in indexes)])
            for entries in (manifest.of_split(first), manifest.of_split(second))
        ]
        shared = np.intersect1d(contents[0], contents[1])
        if count := int((shared != b"").sum()):
            yield f"{first} and {second} share {count} images"


def _strangers(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {f"{entry.name}.tar" for entry in manifest.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: not listed in the manifest, so it is never read; move it away"
    if (folder / STAGING).exists():
        yield f"{folder / STAGING}: a pack was killed; type its command again to complete or clear it"
