"""Images of a SOURCE that are there already: in the packed folder, or twice in SOURCE itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import BoolArray
from pipeline.config import SPLITS
from pipeline.errors import UserError
from pipeline.packing.assign import Assigned
from pipeline.packing.layout import Command
from pipeline.packing.left_out import DUPLICATES, list_duplicates
from pipeline.packing.scan import Images
from pipeline.shards.index import Index, keep_rows, load_index
from pipeline.shards.manifest import Manifest


@dataclass(frozen=True)
class Overlap:
    """What the packed folder holds of a SOURCE."""

    present: BoolArray
    """Whether an image's split holds it, [N]."""
    relabeled: tuple[str, ...]
    """Those of them that have another class there, by their names in SOURCE."""
    elsewhere: dict[int, str]
    """Row -> the image that it equals and for which it has to go: `split/shard/key`, or another image of SOURCE."""
    moved: dict[str, tuple[int, ...]]
    """Unlabeled shard -> its rows that are labeled, val or test images of SOURCE, to be left out of it from now on."""


def find_overlap(out: Path, manifest: Manifest | None, images: Images, assigned: Assigned) -> Overlap:
    """Compare the images of SOURCE, which have splits, with those that `out` holds, by content."""
    splits = assigned.splits
    present = np.zeros(len(images.items), bool)
    relabeled: list[str] = []
    elsewhere = {row: f"{SPLITS[splits[one]]}/{images.items[one].name}" for row, one in assigned.twins.items()}
    counts = ~assigned.bare
    counts[list(assigned.twins)] = False
    moved: dict[str, tuple[int, ...]] = {}
    for split in SPLITS:
        entries = manifest.of_split(split) if manifest else ()
        indexes = {entry.name: load_index(out / f"{entry.name}.tar") for entry in entries}
        kept = {entry.name: np.setdiff1d(np.arange(entry.num_samples), entry.moved) for entry in entries}
        indexes |= {entry.name: keep_rows(indexes[entry.name], kept[entry.name]) for entry in entries if entry.moved}
        held = np.concatenate([np.empty(0, "S16"), *(index.content for index in indexes.values())])
        found, here = np.isin(images.contents, held) & counts, splits == SPLITS.index(split)
        present |= found & here
        if split == "unlabeled":
            labeled = images.contents[found & ~here]
            gone = {name: rows[np.isin(indexes[name].content, labeled)] for name, rows in kept.items()}
            moved = {name: tuple(rows.tolist()) for name, rows in gone.items() if len(rows)}
            continue
        rows, order = np.flatnonzero(found & ~here), np.argsort(held, kind="stable")
        places = order[np.searchsorted(held, images.contents[rows], sorter=order)]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            elsewhere[row] = f"{split}/{_key_at(place, indexes)}"
        pairs = {
            pair
            for index in indexes.values()
            for pair in zip(index.content.tolist(), index.label.tolist(), strict=True)
        }
        wanted = list(zip(images.contents.tolist(), images.labels.tolist(), strict=True))
        changed = [row for row in np.flatnonzero(found & here).tolist() if wanted[row] not in pairs]
        relabeled += [images.items[row].name for row in changed]
    return Overlap(present, tuple(relabeled), elsewhere, moved)


def _key_at(place: int, indexes: Mapping[str, Index]) -> str:
    """`shard/key` of a place among the samples of all indexes."""
    for name, index in indexes.items():
        if place < len(index):
            return f"{name}/{index.key[place]}"
        place -= len(index)
    raise IndexError(place)


def refuse_elsewhere(
    overlap: Overlap,
    source: Path,
    out: Path,
    images: Images,
    assigned: Assigned,
    *,
    command: Command,
    again: str,
) -> None:
    """Refuse images that other splits hold, of `out` or of SOURCE, and list them all.

    Raises:
        UserError: there are some.
    """
    if not overlap.elsewhere:
        return
    rows = [
        (images.items[row].name, SPLITS[assigned.splits[row]], twin) for row, twin in sorted(overlap.elsewhere.items())
    ]
    name, split, twin = rows[0]
    place = source if len(assigned.twins) == len(rows) else out
    list_duplicates(out, source, rows)
    again = again or command(source, SPLITS[assigned.splits[0]])
    what = (
        f"{len(rows)} images to be packed as {split} are in {place} as {twin.split('/')[0]} already, e.g. "
        f"{name} = {twin}; {out / DUPLICATES} lists them. Splits must not share images: leave them out of this pack:\n"
        f"  {again} --skip-duplicates"
    )
    if assigned.carve is not None and len(assigned.twins) < len(rows):
        add = f"{command(source, 'unlabeled')} --skip-duplicates"
        what += f"\nOf a SOURCE that has grown since it was carved, add what is new as unlabeled instead:\n  {add}"
    raise UserError(what)
