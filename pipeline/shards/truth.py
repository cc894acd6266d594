"""True labels that pack kept apart from unlabeled images: for reports, never for training or selection."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.arrays import I32Array, I64Array
from pipeline.errors import UserError
from pipeline.files import parsing
from pipeline.shards.manifest import ShardEntry
from pipeline.shards.mirror import fetched
from pipeline.stages.fingerprint import digest_file


class Truth(NamedTuple):
    """The file of one shard's truth, one int32 per sample of the tar; there need not be one."""

    path: Path
    classes: tuple[str, ...]
    """What the ids in it are called: the classes of its own packed folder, not the data set's."""
    num_samples: int
    sha256: str | None
    """None in folders of an earlier version, whose truth is not compared."""


def truth_of(folder: Path, entry: ShardEntry, classes: tuple[str, ...]) -> Truth:
    """Where a packed folder keeps the truth of a shard."""
    return Truth(folder / "truth" / f"{entry.name}.npy", classes, entry.num_samples, entry.truth_sha256)


def read_truth(truth: Truth) -> I32Array | None:
    """The class ids [num_samples], -1 where nothing is known; None if there is no such file.

    Raises:
        UserError: the file is damaged or does not belong to the shard.
    """
    path, classes, num_samples, sha256 = truth
    if not fetched(path).exists():
        return None
    fix = "restore it, or remove it to go without truth"
    with parsing(f"{path} cannot be read", fix):
        found: I32Array = np.load(path, allow_pickle=False)
    if sha256 is not None and digest_file(path) != sha256:
        raise UserError(f"{path} is damaged: its bytes are not those that were packed; {fix}")
    if found.dtype != np.int32 or found.shape != (num_samples,):
        raise UserError(
            f"{path} does not belong to its shard: {found.dtype} {list(found.shape)} instead of int32 "
            f"[{num_samples}]; {fix}"
        )
    if len(found) and not -1 <= found.min() <= found.max() < len(classes):
        raise UserError(f"{path} has ids out of range: there are {len(classes)} classes; {fix}")
    return found


def truth_as(truth: Truth | None, kept: I64Array | None, num_rows: int, classes: tuple[str, ...]) -> I32Array:
    """What is known of a shard's used samples [num_rows], as ids in `classes`; -1 where nothing is, or another class.

    Args:
        truth: Where the truth is, if there may be some.
        kept: Which samples of the tar are used; None for all.
        num_rows: How many are used.
        classes: The classes of the data set.
    """
    found = read_truth(truth) if truth is not None else None
    if truth is None or found is None:
        return np.full(num_rows, -1, np.int32)
    ids = {name: number for number, name in enumerate(classes)}
    ours = np.array([*(ids.get(name, -1) for name in truth.classes), -1], np.int32)  # the last for -1
    return ours[found if kept is None else found[kept]]
