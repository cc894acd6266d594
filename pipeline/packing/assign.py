"""Which split every image of a SOURCE goes to: the one that was typed, its own, or the one that a carve draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.arrays import BoolArray, U8Array
from pipeline.config import SPLITS, Split
from pipeline.errors import UserError
from pipeline.packing.carve import VAL_FRACTION, Carve, carve_splits
from pipeline.packing.scan import Images

_RANK = np.array([{"test": 0, "val": 1, "labeled": 2, "unlabeled": 3}[split] for split in SPLITS])
"""Of equal images the one with the lowest rank stays: what is measured stays whole, and labeled wins."""
_LABELED, _UNLABELED = SPLITS.index("labeled"), SPLITS.index("unlabeled")


@dataclass(frozen=True)
class Assigned:
    """The splits of all images of a SOURCE."""

    splits: U8Array
    """Indices into SPLITS, [N]."""
    carve: Carve | None
    """What was carved, with what SOURCE itself left open."""
    bare: BoolArray
    """Whether an image has no label and none can be packed without, [N]."""
    twins: dict[int, int]
    """Row -> the row of SOURCE that it equals, where one of them is too many: in another split, or with
    `skip_duplicates` in the same one."""
    equal: dict[int, int]
    """The same, of images that stay."""


def assign_splits(
    images: Images, classes: Sequence[str], *, split: Split | None, carve: Carve | None, skip_duplicates: bool
) -> Assigned:
    """Give every image a split.

    Images without a label are unlabeled, but those of val or test, be it typed or SOURCE's own, are left out: in the
    pool a test image would be seen before the test. A SOURCE with train images and others but without val has val
    carved from its train images. Of SOURCE's own val and test nothing is carved.

    Raises:
        UserError: SOURCE says otherwise than what was typed, or the carve cannot be.
    """
    own = [item.split for item in images.items]
    if len(set(own) - {None, "labeled"}) == 0:
        own = [None] * len(own)  # all of one kind: nothing is told apart
    if split is not None and len(set(own)) > 1:
        words = sorted({item.origin for item in images.items if item.origin})
        raise UserError(
            f"SOURCE has splits of its own ({', '.join(words[:6])}); leave --split {split} out to take them"
        )
    splits = np.array([SPLITS.index(split or one or "labeled") for one in own], np.uint8)
    bare = (images.labels < 0) & ~np.isin(splits, (_LABELED, _UNLABELED))
    splits[(images.labels < 0) & (splits == _LABELED)] = _UNLABELED
    if split is None:
        carve = _open_part(carve, set(own))
    eligible = splits == _LABELED
    twins: dict[int, int] = {}
    if skip_duplicates:
        twins = _later_ones(images, splits, bare)
        mixed = _with_several_labels(images, eligible)
        eligible[list(twins)] = False
        if carve is not None:
            splits[eligible & mixed] = _UNLABELED
            eligible &= ~mixed
    if carve is not None and not eligible.any():
        raise UserError("there is nothing to carve: no image of SOURCE is labeled and in no other split")
    if carve is not None:
        splits[eligible] = carve_splits(carve, images.labels[eligible], images.contents[eligible], classes)
    later = {} if skip_duplicates else _later_ones(images, splits, bare)
    twins |= {row: first for row, first in later.items() if splits[row] != splits[first]}
    equal = {row: first for row, first in later.items() if row not in twins}
    return Assigned(splits, carve, bare, twins, equal)


def _open_part(carve: Carve | None, own: set[Split | None]) -> Carve | None:
    """What is left to carve of a SOURCE with these splits."""
    if carve is None:
        if "labeled" not in own or "val" in own:
            return None
        carve = Carve(num_labeled="all", val_fraction=None)
    for one, fraction in (("val", carve.val_fraction), ("test", carve.test_fraction)):
        if one in own and fraction:
            raise UserError(f"SOURCE has a {one} split of its own; leave --{one}-fraction {fraction:g} out")
    default = 0.0 if "val" in own else VAL_FRACTION
    return replace(carve, val_fraction=default) if carve.val_fraction is None else carve


def _later_ones(images: Images, splits: U8Array, bare: BoolArray) -> dict[int, int]:
    """Row -> the row that stays, of all images that equal another one of SOURCE. A bare one stays for no other."""
    order = np.lexsort((np.arange(len(splits)), _RANK[splits], bare, images.contents))
    contents = images.contents[order]
    starts = np.flatnonzero(np.r_[True, contents[1:] != contents[:-1]])
    first = np.repeat(order[starts], np.diff(np.r_[starts, len(order)]))
    later = order != first
    return dict(zip(order[later].tolist(), first[later].tolist(), strict=True))


def _with_several_labels(images: Images, labeled: BoolArray) -> BoolArray:
    """Whether an image is labeled, and equals one that is labeled otherwise, [N]."""
    _, group = np.unique(images.contents, return_inverse=True)
    least, most = np.full(group.max() + 1, np.iinfo(np.int32).max), np.full(group.max() + 1, -1)
    np.minimum.at(least, group[labeled], images.labels[labeled])
    np.maximum.at(most, group[labeled], images.labels[labeled])
    mixed: BoolArray = labeled & (least < most)[group]
    return mixed
