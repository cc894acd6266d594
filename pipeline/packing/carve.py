"""Carve one labeled source into a labeled set, val, test and an unlabeled rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import SPLITS, Split
from pipeline.errors import UserError
from pipeline.randomness import key_of, philox_u32

VAL_FRACTION = 0.1
"""What becomes val unless something else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Carve:
    """What to carve: a number of labeled images, or all that are left; val and test as fractions of the whole."""

    num_labeled: int | Literal["all"]
    proportional: bool = False
    """Whether labels are drawn as the classes are in the source, or evenly over the classes."""
    val_fraction: float | None = 0.0
    """None: VAL_FRACTION, or 0 of a source that has a val split of its own."""
    test_fraction: float = 0.0
    seed: int = 0

    def fraction_of(self, split: Split) -> float:
        """The share of the source that a split gets; 1 for labeled, of which there is a number."""
        return {"val": self.val_fraction or 0.0, "test": self.test_fraction}.get(split, 1.0)

    def __post_init__(self) -> None:
        if self.num_labeled != "all" and self.num_labeled <= 0:
            raise UserError(f"--labels must be positive, or all, not {self.num_labeled}")
        if self.num_labeled == "all" and self.proportional:
            raise UserError("--proportional is about a number of labels; leave it out beside --labels all")
        for name, value in (("--val-fraction", self.val_fraction), ("--test-fraction", self.test_fraction)):
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1), not {value}")


def carve_splits(
    carve: Carve,
    labels: npt.NDArray[np.int32],
    contents: npt.NDArray[np.bytes_],
    classes: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """The split of every image, [N], as an index into SPLITS. Every image has a label.

    Within each class, images are ranked by a random number that is a function of (seed, content); test takes the
    first, then val, then labeled. So the result does not depend on the order of files, labeled sets of one seed are
    nested, and val and test do not change with `num_labeled` unless a class would run out. Equal images stay together;
    those that occur in several classes have no true label and go to the unlabeled rest. A class that has too few images
    beside val and test has fewer labeled ones.

    Raises:
        UserError: a class would have no labeled image, or there are fewer labels than classes.
    """
    num_classes = len(classes)
    if carve.num_labeled != "all" and carve.num_labeled < num_classes:
        raise UserError(f"--labels {carve.num_labeled} is less than one image for each of {num_classes} classes")
    _, group_of, group_size = np.unique(contents, return_inverse=True, return_counts=True)
    first_of_group = np.full(len(group_size), -1)
    first_of_group[group_of[::-1]] = np.arange(len(labels))[::-1]
    group_label = labels[first_of_group]
    group_label[group_of[labels != group_label[group_of]]] = -1

    ids = np.frombuffer(contents[first_of_group].astype("S16").tobytes(), np.uint64)[::2]
    rank = _random(key_of(carve.seed, "carve"), ids)
    class_sizes = np.bincount(labels, minlength=num_classes)
    wanted = _quotas(carve, class_sizes, classes)
    group_split = np.full(len(group_size), SPLITS.index("unlabeled"), np.uint8)
    for class_id, class_name in enumerate(classes):
        groups = of_class = np.flatnonzero(group_label == class_id)
        groups = groups[np.argsort(rank[groups], kind="stable")]
        for split, quotas in wanted.items():
            quota = missing = int(quotas[class_id])
            taken = np.zeros(len(groups), bool)
            for position, size in enumerate(group_size[groups]):
                if missing == 0:
                    break
                if size <= missing:
                    taken[position] = True
                    missing -= size
            needed = split == "labeled" and (carve.num_labeled != "all" or class_sizes[class_id])
            if needed and missing == quota:
                different = len(of_class)
                equal = f", of which {different} differ and are in no other class"
                equal = equal if different < class_sizes[class_id] else ""
                raise UserError(
                    f"class `{class_name}` has {class_sizes[class_id]} images{equal}: no labeled one can be found "
                    "beside val and test; lower --val-fraction or --test-fraction, or --drop the class"
                )
            group_split[groups[taken]] = SPLITS.index(split)
            groups = groups[~taken]
    return group_split[group_of]


def fewer_labels(carve: Carve, labels: npt.NDArray[np.int32], classes: Sequence[str]) -> dict[str, int]:
    """Of an even draw, the classes that have fewer labels than the others, with the number that they have.

    `labels` are those of the labeled images that were drawn.
    """
    if carve.num_labeled == "all" or carve.proportional:
        return {}
    counts = np.bincount(labels, minlength=len(classes))
    rare = np.flatnonzero(counts < carve.num_labeled // len(classes)).tolist()
    return {classes[class_id]: int(counts[class_id]) for class_id in rare}


def _quotas(
    carve: Carve, class_sizes: npt.NDArray[np.int64], classes: Sequence[str]
) -> dict[Split, npt.NDArray[np.int64]]:
    """Images per class [C] of test, val and labeled.

    Val and test have every class where they have as many images as there are classes, and where the class has enough.
    They come first: where they and an even share of the labels are more than a class has, its labels are fewer.
    """
    names = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) for name in classes]
    ids = np.array(names, np.uint64)
    if carve.num_labeled == "all":
        labeled = class_sizes
    else:
        shares = class_sizes / class_sizes.sum() if carve.proportional else np.full(len(classes), 1 / len(classes))
        rank = _random(key_of(carve.seed, "carve", "labeled"), ids)
        labeled = _share(carve.num_labeled * shares, rank, class_sizes)

    def of_others(left: npt.NDArray[np.int64]) -> dict[Split, npt.NDArray[np.int64]]:
        quotas: dict[Split, npt.NDArray[np.int64]] = {}
        drawn_first: tuple[Split, ...] = ("test", "val")
        for split in drawn_first:
            rank = _random(key_of(carve.seed, "carve", split), ids)
            quotas[split] = _share(carve.fraction_of(split) * class_sizes, rank, left)
            left = left - quotas[split]
        return quotas

    quotas = of_others(class_sizes - labeled)
    if (labeled > class_sizes - quotas["test"] - quotas["val"]).any():
        quotas = of_others(class_sizes - 1)
        labeled = np.minimum(labeled, class_sizes - quotas["test"] - quotas["val"])
    return {**quotas, "labeled": labeled}


def _share(
    exact: npt.NDArray[np.floating], rank: npt.NDArray[np.uint64], room: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Round [C] numbers to integers that keep the rounded total; every class gets one where the total suffices.

    The largest remainders are rounded up, ties in the order of `rank`. No class gets more than its `room` by that.
    """
    exact = np.round(exact, 6)  # 0.1 * 30 must not fall below 3
    total = round(float(exact.sum()))
    shares: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    if total >= np.count_nonzero(exact):
        shares = np.maximum(shares, (exact > 0) & (room > 0))
    order = np.lexsort((rank, shares - exact, shares + 1 > room))
    missing = total - int(shares.sum())
    shares[order[: max(missing, 0)]] += 1
    while (missing := total - int(shares.sum())) < 0:  # what the classes with less than one image were given
        from_largest = np.lexsort((rank, exact - shares, shares <= 1))
        shares[from_largest[: min(-missing, np.count_nonzero(shares > 1))]] -= 1
    return shares


def _random(key: int, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A random number for each of [n] ids, as a function of key and id."""
    words = philox_u32(key, ids, 2).astype(np.uint64)
    return (words[:, 0] << np.uint64(32)) | words[:, 1]
