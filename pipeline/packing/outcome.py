"""What a pack did, so that people can check it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.arrays import BoolArray, U8Array
from pipeline.config import SPLITS, Split
from pipeline.packing.carve import Carve
from pipeline.packing.scan import Images
from pipeline.shards.manifest import ShardEntry


@dataclass(frozen=True)
class PackReport:
    """What a pack did."""

    out: Path
    classes: tuple[str, ...]
    num_files: int
    """Files of SOURCE. Each was packed now, packed before, or left out."""
    num_samples: dict[Split, int]
    """Samples added, by split."""
    shards: tuple[str, ...]
    """Names of the added shards."""
    num_present: int
    """Images of SOURCE that were left out because their split of `out` holds them already."""
    num_moved: int
    """Images that `out` had unlabeled, and that now count in the split that they were packed in."""
    relabeled: tuple[str, ...]
    """Those among them that `out` holds under another class, by their names in SOURCE. Shards keep what they hold."""
    num_duplicates: int
    """Images of SOURCE that are equal to another one of it. They are packed too, into the same split, unless
    duplicates are skipped."""
    conflicts: tuple[str, ...]
    """Equal images under different classes, one line per group. A carve leaves them unlabeled."""
    absent_classes: dict[Split, tuple[str, ...]]
    """Classes that SOURCE has no image of, by the split that would hold it."""
    fewer_labels: dict[str, int]
    """The classes of which an even draw found fewer labeled images than of others, with their number."""
    ignored: dict[str, int]
    """Number of files of SOURCE that are no images, by kind."""
    skipped: dict[str, str]
    """Bad images that were left out, with the reason."""
    elsewhere: dict[str, str]
    """Images that were left out because they equal another one, with its place."""
    duplicates: Path | None
    """The list of images that equal another one and were packed; None if there are none."""
    num_left_out: int
    """The files that are neither packed now nor before."""
    left_out: Path | None
    """The list of them; None if there are none."""
    notes: tuple[str, ...]
    """What was taken for what, as sentences."""
    empty_folders: tuple[str, ...]
    """Folders of SOURCE without an image."""
    look_alikes: tuple[str, ...]
    """Classes that differ in case or white space alone."""
    value_range: tuple[float, float] | None
    """The values that became black and white, where values were scaled."""
    values_found: tuple[float, float]
    """The least and the largest of those that such a range is for."""
    odd_metadata: int
    """Images whose metadata are damaged; their pixels were taken without."""
    more_frames: int
    """Animations and files of several pages, of which the first was taken."""
    recovered: bool
    """An earlier pack into `out` had been killed; it was completed or cleared away."""


def count(entries: Sequence[ShardEntry]) -> dict[Split, int]:
    """Samples by split."""
    added: Counter[Split] = Counter()
    for entry in entries:
        added[entry.split] += entry.num_samples
    return dict(added)


def absent(images: Images, splits: U8Array, names: Sequence[str], carve: Carve | None) -> dict[Split, tuple[str, ...]]:
    """The classes without an image, by split: of the splits that images have, or were to have from a carve."""
    found: dict[Split, tuple[str, ...]] = {}
    for number, split in enumerate(SPLITS):
        wanted = (splits == number).any() or (carve is not None and carve.fraction_of(split) > 0)
        if split != "unlabeled" and wanted:
            seen = set(images.labels[splits == number].tolist())
            found[split] = tuple(name for class_id, name in enumerate(names) if class_id not in seen)
    return {split: classes for split, classes in found.items() if classes}


def note_of_bare(bare: BoolArray) -> tuple[str, ...]:
    """That images of val or test are left out, because they have no label."""
    num = int(bare.sum())
    return (f"{num:,} images of val or test have no label, so they are left out and listed",) if num else ()


def note_of_splits(images: Images, splits: U8Array) -> tuple[str, ...]:
    """What SOURCE called the splits that were taken from it, and what became of each; len(SPLITS) is left out."""
    names = (*SPLITS, "left out")
    told: dict[tuple[str, str], Counter[str]] = {}
    for item, split in zip(images.items, splits.tolist(), strict=True):
        told.setdefault((item.split or "", item.origin), Counter())[names[split]] += 1
    if not {split for split, _ in told} - {"labeled", ""}:
        return ()
    lines = [
        f"{origin or 'without one'} ({', '.join(f'{n:,} {split}' for split, n in counts.most_common())})"
        for (_, origin), counts in sorted(told.items())
    ]
    return (f"SOURCE has splits of its own: {', '.join(lines)}",)
