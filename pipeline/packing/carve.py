"""Carve one labeled source into a class-balanced labeled set, val, test and an unlabeled rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import SPLITS, Split
from pipeline.errors import UserError
from pipeline.randomness import key_of, philox_u32


@dataclass(frozen=True, kw_only=True)
class Carve:
    """What to carve: `num_labeled` images in total, val and test as fractions of the whole source."""

    num_labeled: int
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_labeled <= 0:
            raise UserError(f"--labels must be positive, not {self.num_labeled}")
        for name, value in (("--val-fraction", self.val_fraction), ("--test-fraction", self.test_fraction)):
            if not 0 <= value < 1:
                raise UserError(f"{name} must be in [0, 1), not {value}")


def carve_splits(
    carve: Carve,
    labels: npt.NDArray[np.int32],
    contents: npt.NDArray[np.bytes_],
    classes: Sequence[str],
) -> npt.NDArray[np.uint8]:
    """The split of every image, [N], as an index into SPLITS.

    Within each class, images are ranked by a random number that is a function of (seed, content); test takes the
    first, then val, then labeled. So the result does not depend on the order of files, labeled sets of one seed are
    nested, and val and test do not change with `num_labeled`. Equal images stay together; those that occur in
    several classes have no true label and go to the unlabeled rest.

    Raises:
        UserError: a class has too few images, or there are fewer labels than classes.
    """
    num_classes = len(classes)
    if carve.num_labeled < num_classes:
        raise UserError(f"--labels {carve.num_labeled} is less than one image for each of {num_classes} classes")
    _, group_of, group_size = np.unique(contents, return_inverse=True, return_counts=True)
    first_of_group = np.full(len(group_size), -1)
    first_of_group[group_of[::-1]] = np.arange(len(labels))[::-1]
    group_label = labels[first_of_group]
    group_label[group_of[labels != group_label[group_of]]] = -1

    ids = np.frombuffer(contents[first_of_group].astype("S16").tobytes(), np.uint64)[::2]
    words = philox_u32(key_of(carve.seed, "carve"), ids, 2).astype(np.uint64)
    rank = (words[:, 0] << np.uint64(32)) | words[:, 1]

    class_sizes = np.bincount(labels, minlength=num_classes)
    wanted: list[tuple[Split, npt.NDArray[np.int64]]] = [
        ("test", _share(carve.test_fraction * class_sizes)),
        ("val", _share(carve.val_fraction * class_sizes)),
        ("labeled", _share(np.full(num_classes, carve.num_labeled / num_classes))),
    ]
    group_split = np.full(len(group_size), SPLITS.index("unlabeled"), np.uint8)
    for class_id, class_name in enumerate(classes):
        groups = np.flatnonzero(group_label == class_id)
        groups = groups[np.argsort(rank[groups], kind="stable")]
        for split, quotas in wanted:
            missing = int(quotas[class_id])
            taken = np.zeros(len(groups), bool)
            for position, size in enumerate(group_size[groups]):
                if missing == 0:
                    break
                if size <= missing:
                    taken[position] = True
                    missing -= size
            if missing and split == "labeled":
                raise UserError(
                    f"class `{class_name}` has {class_sizes[class_id]} images: {quotas[class_id]} labeled ones cannot "
                    "be found beside val and test; lower --labels, --val-fraction or --test-fraction"
                )
            group_split[groups[taken]] = SPLITS.index(split)
            groups = groups[~taken]
    return group_split[group_of]


def _share(exact: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Round to integers that keep the rounded total: the largest remainders are rounded up, ties to the first."""
    exact = np.round(exact, 6)  # 0.1 * 30 must not fall below 3
    shares: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:missing]] += 1
    return shares
