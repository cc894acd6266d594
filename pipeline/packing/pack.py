"""Pack a SOURCE of images into shards, as one split or carved into several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import BoolArray, U8Array
from pipeline.config import SPLITS, Split
from pipeline.errors import UserError, did_you_mean
from pipeline.packing.carve import Carve, carve_splits
from pipeline.packing.scan import Images, check_images, conflicting
from pipeline.packing.source import Item, arrange, open_source
from pipeline.packing.staging import recover, staged
from pipeline.packing.writer import ShardWriter
from pipeline.shards.index import BadImages, Progress, load_index
from pipeline.shards.manifest import (
    MANIFEST,
    CarveRecord,
    Manifest,
    ShardEntry,
    read_classes,
    read_manifest,
    write_manifest,
)
from pipeline.stages.lock import run_lock

SHARD_SIZE = 10_000
"""Samples per shard, at most, unless something else is asked for."""


@dataclass(frozen=True)
class PackReport:
    """What a pack did, so that people can check it."""

    out: Path
    classes: tuple[str, ...]
    num_samples: dict[Split, int]
    """Samples added, by split."""
    shards: tuple[str, ...]
    """Names of the added shards."""
    num_present: int
    """Images of SOURCE that were left out because their split of `out` holds them already."""
    relabeled: tuple[str, ...]
    """Those among them that `out` holds under another class, by their names in SOURCE. Shards keep what they hold."""
    num_duplicates: int
    """Images of SOURCE that are equal to another one of it. They are packed too, into the same split."""
    conflicts: tuple[str, ...]
    """Equal images under different classes, one line per group. A carve leaves them unlabeled."""
    absent_classes: tuple[str, ...]
    """Classes that SOURCE has no image of."""
    ignored: dict[str, int]
    """Files of SOURCE that are no images, by kind."""
    skipped: tuple[str, ...]
    """Bad images that were left out, with the reason."""
    recovered: bool
    """An earlier pack into `out` had been killed; it was completed or cleared away."""


def pack(
    source: Path,
    out: Path,
    *,
    split: Split | None = None,
    shard_size: int = SHARD_SIZE,
    classes: Path | None = None,
    carve: Carve | None = None,
    bad_images: BadImages = "error",
    workers: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Pack `source` into `out` as one split, or carve it into several; appends when `out` holds shards already.

    The bytes of JPEG, PNG and WebP files are stored unchanged; other formats become PNG. Equal images and arguments
    give equal tars, whatever the order of files and the number of workers (0: one per core). Images that their split
    of `out` holds already are left out, so the same command typed again adds nothing.

    Raises:
        UserError: bad arguments, a bad image (with `bad_images="error"`), an unknown class, an image that another
            split of `out` holds, a full disk or a read-only folder. `out` is then what it was.
    """
    if (split is None) == (carve is None):
        raise UserError("say either which --split the images are, or how to carve them with --labels N; not both")
    if shard_size <= 0:
        raise UserError(f"--shard-size must be positive, not {shard_size}")
    with open_source(source) as images, run_lock(out):
        recovered = recover(out)
        manifest = read_manifest(out) if (out / MANIFEST).exists() else None
        known = _known_classes(manifest, classes, out)
        items = arrange(images, labeled=split != "unlabeled", known=known)
        names = known or tuple(sorted({item.class_name for item in items if item.class_name}))
        _check_classes(items, names, out)
        tick = _ticker(progress, 2 * len(items))
        checked = check_images(images, items, names, bad_images, workers, tick)
        if carve is None:
            splits = np.full(len(checked.items), SPLITS.index(split or "unlabeled"), np.uint8)
        else:
            splits = carve_splits(carve, checked.labels, checked.contents, names)
        present, relabeled = _find_present(out, manifest, checked, splits)
        entries: list[ShardEntry] = []
        if not present.all():
            record = None if carve is None else _carve_record(carve, source, splits)
            with staged(out) as staging:
                writer = ShardWriter(images, checked, out, staging, shard_size, tick)
                for one in SPLITS:
                    rows = np.flatnonzero((splits == SPLITS.index(one)) & ~present)
                    entries += writer.write_split(one, rows, manifest, with_truth=carve is not None)
                write_manifest(staging, _extend(manifest, names, checked.image_size, entries, record))
    seen = {item.class_name for item in checked.items}
    added: Counter[Split] = Counter()
    for entry in entries:
        added[entry.split] += entry.num_samples
    return PackReport(
        out=out,
        classes=names,
        num_samples=dict(added),
        shards=tuple(entry.name for entry in entries),
        num_present=int(present.sum()),
        relabeled=relabeled,
        num_duplicates=len(checked.contents) - len(np.unique(checked.contents)),
        conflicts=conflicting(checked),
        absent_classes=() if split == "unlabeled" else tuple(name for name in names if name not in seen),
        ignored=images.ignored,
        skipped=checked.skipped,
        recovered=recovered,
    )


def _ticker(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return tick


def _known_classes(manifest: Manifest | None, path: Path | None, out: Path) -> tuple[str, ...]:
    listed = read_classes(path) if path else ()
    packed = manifest.classes if manifest else ()
    if listed and packed and listed != packed:
        raise UserError(f"{path} differs from the classes in {out / MANIFEST}, which fixes the ids; drop --classes")
    return packed or listed


def _check_classes(items: Sequence[Item], names: Sequence[str], out: Path) -> None:
    for item in items:
        if item.class_name is not None and item.class_name not in names:
            hint = did_you_mean(item.class_name, names)
            raise UserError(f"{item.name}: unknown class `{item.class_name}`; {out} has other classes: {hint}")


def _find_present(
    out: Path, manifest: Manifest | None, images: Images, splits: U8Array
) -> tuple[BoolArray, tuple[str, ...]]:
    """Which images their split of `out` holds already, [N], and the names of those that have another class there.

    Raises UserError when another split holds one.
    """
    present = np.zeros(len(images.items), bool)
    relabeled: list[str] = []
    for split in SPLITS:
        entries = manifest.of_split(split) if manifest else ()
        indexes = [load_index(out / f"{entry.name}.tar") for entry in entries]
        found = np.isin(images.contents, np.concatenate([np.empty(0, "S16"), *(index.content for index in indexes)]))
        clashing = np.flatnonzero(found & (splits != SPLITS.index(split)))
        if len(clashing):
            row = int(clashing[0])
            wanted, name, content = SPLITS[splits[row]], images.items[row].name, images.contents[row]
            twins = (index.key[int(place)] for index in indexes for place in np.flatnonzero(index.content == content))
            raise UserError(
                f"{len(clashing)} images to be packed as {wanted} are in {out} as {split} already, e.g. {name} = "
                f"{next(twins)}; splits must not share images: remove them from the source, or pack into another --out"
            )
        present |= found
        if split != "unlabeled":
            held = {
                pair for index in indexes for pair in zip(index.content.tolist(), index.label.tolist(), strict=True)
            }
            wanted_pairs = zip(images.contents.tolist(), images.labels.tolist(), strict=True)
            relabeled += [
                images.items[row].name for row, pair in enumerate(wanted_pairs) if found[row] and pair not in held
            ]
    return present, tuple(relabeled)


def _extend(
    manifest: Manifest | None,
    classes: tuple[str, ...],
    image_size: tuple[int, int],
    entries: Sequence[ShardEntry],
    record: CarveRecord | None,
) -> Manifest:
    manifest = manifest or Manifest(image_size=image_size, shards=())
    added = () if record is None else (record,)
    return manifest.model_copy(
        update={
            "classes": manifest.classes or classes,
            "shards": (*manifest.shards, *entries),
            "carves": (*manifest.carves, *added),
        }
    )


def _carve_record(carve: Carve, source: Path, splits: U8Array) -> CarveRecord:
    return CarveRecord(
        source=source.resolve().name.encode("utf-8", "replace").decode(),
        seed=carve.seed,
        num_labeled=carve.num_labeled,
        val_fraction=carve.val_fraction,
        test_fraction=carve.test_fraction,
        num_samples={split: int((splits == number).sum()) for number, split in enumerate(SPLITS)},
    )
