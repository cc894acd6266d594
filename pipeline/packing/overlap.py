"""Images of a SOURCE that the packed folder holds already: in their own split, or in another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import BoolArray, U8Array
from pipeline.config import SPLITS
from pipeline.errors import UserError
from pipeline.files import write_csv
from pipeline.packing.scan import Images
from pipeline.packing.tables import Command
from pipeline.shards.index import Index, load_index
from pipeline.shards.manifest import Manifest

DUPLICATES = "duplicates.csv"


@dataclass(frozen=True)
class Overlap:
    """What the packed folder holds of a SOURCE."""

    present: BoolArray
    """Whether an image's split holds it, [N]."""
    relabeled: tuple[str, ...]
    """Those of them that have another class there, by their names in SOURCE."""
    elsewhere: dict[int, str]
    """Row -> the image of another split that it equals, as `split/shard/key`."""


def find_overlap(out: Path, manifest: Manifest | None, images: Images, splits: U8Array) -> Overlap:
    """Compare the images of SOURCE, with their splits [N], with those that `out` holds, by content."""
    present = np.zeros(len(images.items), bool)
    relabeled: list[str] = []
    elsewhere: dict[int, str] = {}
    for split in SPLITS:
        entries = manifest.of_split(split) if manifest else ()
        indexes = {entry.name: load_index(out / f"{entry.name}.tar") for entry in entries}
        held = np.concatenate([np.empty(0, "S16"), *(index.content for index in indexes.values())])
        found, here = np.isin(images.contents, held), splits == SPLITS.index(split)
        rows, order = np.flatnonzero(found & ~here), np.argsort(held, kind="stable")
        places = order[np.searchsorted(held, images.contents[rows], sorter=order)]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            elsewhere[row] = f"{split}/{_key_at(place, indexes)}"
        present |= found & here
        if split != "unlabeled":
            pairs = {
                pair
                for index in indexes.values()
                for pair in zip(index.content.tolist(), index.label.tolist(), strict=True)
            }
            wanted = list(zip(images.contents.tolist(), images.labels.tolist(), strict=True))
            changed = [row for row in np.flatnonzero(found & here).tolist() if wanted[row] not in pairs]
            relabeled += [images.items[row].name for row in changed]
    return Overlap(present, tuple(relabeled), elsewhere)


def _key_at(place: int, indexes: Mapping[str, Index]) -> str:
    """`shard/key` of a place among the samples of all indexes."""
    for name, index in indexes.items():
        if place < len(index):
            return f"{name}/{index.key[place]}"
        place -= len(index)
    raise IndexError(place)


def refuse_elsewhere(
    overlap: Overlap, source: Path, out: Path, images: Images, splits: U8Array, command: Command, *, skip: bool
) -> None:
    """Refuse images that other splits hold, and list them all. With `skip` they are left out instead, where that loses
    no label.

    Raises:
        UserError: there are some.
    """
    lost = [row for row, twin in overlap.elsewhere.items() if twin.startswith("unlabeled/")]
    if not overlap.elsewhere or (skip and not lost):
        return
    row, twin = next(iter(overlap.elsewhere.items()))
    rows = [[images.items[row].name, SPLITS[splits[row]], twin] for row, twin in sorted(overlap.elsewhere.items())]
    write_csv(out / DUPLICATES, ("file", "split", "equals"), rows)
    what = (
        f"{len(rows)} images to be packed as {SPLITS[splits[row]]} are in {out} as {twin.split('/')[0]} already, e.g. "
        f"{images.items[row].name} = {twin}; {out / DUPLICATES} lists them. Splits must not share images: "
    )
    if (splits != splits[row]).any():
        add = f"{command(source, 'unlabeled')} --skip-duplicates"
        raise UserError(f"{what}carve all into another --out, or add what is new:\n  {add}")
    if lost:
        raise UserError(f"{what}pack all into another --out, labeled images first and unlabeled ones after them")
    raise UserError(f"{what}leave them out of this pack:\n  {command(source, SPLITS[splits[row]])} --skip-duplicates")
