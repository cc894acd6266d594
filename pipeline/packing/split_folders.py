"""Folders that are splits: told from classes, and taken for what they are called where that is clear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.config import Split
from pipeline.packing.item import SPLIT_WORDS

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ALSO_CLASSES = {"train", "extra", "dev"}
"""Words that may be classes (a train is a vehicle), unless other folders beside them or below them tell otherwise."""


class Place(NamedTuple):
    """What the folders of an image say."""

    split: Split | None
    origin: str
    """The folder that is a split."""
    class_name: str | None


def places_by_folders(paths: Sequence[Sequence[str]], depth: int, known: set[str]) -> list[Place] | None:
    """What the folders of images say where all of them are clear; None otherwise, or if no folder is a split.

    Clear are `train/CLASS/x.jpg` beside `test/CLASS/x.jpg` and more (with a folder twice, as in
    `seg_train/seg_train/CLASS`), `CLASS/train/x.jpg` beside `CLASS/test/x.jpg`, and class folders beside an unlabeled
    one. Unlabeled images may lie at any depth.

    Args:
        paths: The parts of the images' paths.
        depth: The number of the folders that hold all of them.
        known: Names of classes that exist already.
    """
    return _splits_above(paths, depth, known) or _splits_below(paths, depth)


def _splits_above(paths: Sequence[Sequence[str]], depth: int, known: set[str]) -> list[Place] | None:
    folders = {parts[depth] for parts in paths}
    found = splits_among(folders - known, {parts[depth] for parts in paths if len(parts) > depth + 2})
    beside = folders - found.keys()
    if not found or (beside and set(found.values()) != {"unlabeled"}):
        return None
    if not beside and "labeled" not in found.values():
        return None
    places = []
    for parts in paths:
        top, inside = parts[depth], list(parts[depth + 1 :])
        split = found.get(top)
        while split is not None and len(inside) > 1 and inside[0] == top:
            inside = inside[1:]
        if split is None:
            places.append(Place(None, "", top))
        elif split == "unlabeled":
            places.append(Place(split, top, None))
        elif len(inside) < 2:
            return None
        else:
            places.append(Place(split, top, inside[0]))
    classes = {place.class_name for place in places if place.split in (None, "labeled")}
    others = {place.class_name for place in places if place.class_name is not None} - classes - known
    return places if not others and _are_classes(classes, known) else None


def _splits_below(paths: Sequence[Sequence[str]], depth: int) -> list[Place] | None:
    if any(len(parts) < depth + 3 for parts in paths):
        return None
    below = {parts[depth + 1] for parts in paths}
    found = splits_among(below, set())
    if below != found.keys() or "labeled" not in found.values() or len(set(found.values())) < 2:
        return None
    places = [Place(found[parts[depth + 1]], parts[depth + 1], parts[depth]) for parts in paths]
    return places if _are_classes({place.class_name for place in places}, set()) else None


def _are_classes(names: set[str | None], known: set[str]) -> bool:
    """Whether folders inside of splits look like classes: several, or known, and none called like a split."""
    inside = {name for name in names if name is not None}
    return (len(inside) > 1 or bool(inside & known)) and not splits_among(inside - known, set())


def splits_by_folders(paths: Sequence[Sequence[str]], classes: set[str]) -> list[dict[str, Split]]:
    """What the folders of each image say of its split, at any depth, where classes are told otherwise: folder -> split.

    A folder that holds all images tells nothing apart.

    Args:
        paths: The parts of the images' paths.
        classes: Names of classes, which are no splits.
    """
    said: list[dict[str, Split]] = [{} for _ in paths]
    for depth in range(max(map(len, paths)) - 1):
        here = [parts[depth] if len(parts) > depth + 1 else "" for parts in paths]
        if len(set(here)) == 1:
            continue
        nested = {parts[depth] for parts in paths if len(parts) > depth + 2}
        found = splits_among(set(here) - classes, nested)
        for parts, folders in zip(paths, said, strict=True):
            twice = depth > 0 and parts[depth] == parts[depth - 1]  # as in seg_train/seg_train
            if len(parts) > depth + 1 and parts[depth] in found and not (twice and folders):
                folders["/".join(parts[: depth + 1])] = found[parts[depth]]
    return said


def splits_among(folders: set[str], nested: set[str]) -> dict[str, Split]:
    """The folders that are called like splits, such as `test`, `train2017`, or `seg_train` beside `seg_test`."""
    named: dict[str, tuple[Split, tuple[str, ...]]] = {}
    for folder in folders:
        words = [word.lower().removesuffix("set") or word for word in _WORD.findall(folder)]
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        if len(splits) == 1:
            named[folder] = splits[0], tuple(word for word in words if word not in SPLIT_WORDS)
    several = {
        rest for _, rest in named.values() if len({split for split, other in named.values() if other == rest}) > 1
    }
    alone = {
        folder
        for folder, (_, rest) in named.items()
        if not rest and (folder.lower() not in _ALSO_CLASSES or folder in nested)
    }
    return {folder: split for folder, (split, _) in named.items()} if several or alone else {}
