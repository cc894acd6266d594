"""Pack a SOURCE of images into shards, as one split or carved into several."""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.arrays import U8Array
from pipeline.config import SPLITS, Split
from pipeline.errors import UserError, did_you_mean
from pipeline.packing.carve import Carve, carve_splits
from pipeline.packing.layout import Item, arrange, look_alikes
from pipeline.packing.left_out import list_left_out
from pipeline.packing.overlap import find_overlap, refuse_elsewhere
from pipeline.packing.scan import Images, check_images, conflicting
from pipeline.packing.source import open_source
from pipeline.packing.staging import recover, staged
from pipeline.packing.tables import Command
from pipeline.packing.writer import ShardWriter
from pipeline.shards.index import BadImages, Progress
from pipeline.shards.manifest import (
    MANIFEST,
    CarveRecord,
    Manifest,
    ShardEntry,
    read_classes,
    read_manifest,
    write_manifest,
)
from pipeline.shards.values import FULL, ValueRange
from pipeline.stages.lock import run_lock

SHARD_SIZE = 10_000
"""Samples per shard, at most, unless something else is asked for."""


@dataclass(frozen=True)
class PackReport:
    """What a pack did, so that people can check it."""

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
    relabeled: tuple[str, ...]
    """Those among them that `out` holds under another class, by their names in SOURCE. Shards keep what they hold."""
    num_duplicates: int
    """Images of SOURCE that are equal to another one of it. They are packed too, into the same split."""
    conflicts: tuple[str, ...]
    """Equal images under different classes, one line per group. A carve leaves them unlabeled."""
    absent_classes: dict[Split, tuple[str, ...]]
    """Classes that SOURCE has no image of, by the split that would hold it."""
    ignored: dict[str, int]
    """Number of files of SOURCE that are no images, by kind."""
    skipped: dict[str, str]
    """Bad images that were left out, with the reason."""
    elsewhere: dict[str, str]
    """Images that were left out because another split of `out` holds them, with the place there."""
    left_out: Path | None
    """The list of the files that are neither packed now nor before; None if there are none."""
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


def pack(
    source: Path,
    out: Path,
    *,
    split: Split | None = None,
    shard_size: int = SHARD_SIZE,
    classes: Path | None = None,
    carve: Carve | None = None,
    bad_images: BadImages = "error",
    skip_duplicates: bool = False,
    value_range: ValueRange | Literal["auto"] | None = None,
    zip_encoding: str | None = None,
    known: tuple[str, ...] = (),
    command: Command | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Pack `source` into `out` as one split, or carve it into several; appends when `out` holds shards already.

    The bytes of JPEG, PNG and WebP files are stored unchanged; other formats become PNG, and so does what is scaled
    with `value_range`. Equal images and arguments give equal tars, whatever the order of files and the number of
    workers (0: one per core). Images that their split of `out` holds already are left out, so the same command typed
    again adds nothing. Whatever else is left out is listed in `left_out.csv`.

    `known` are names that folders of classes may have, and `command` writes the commands that messages propose, where
    another verb than pack reads the images.

    Raises:
        UserError: bad arguments, a layout that is not clear, a bad image (with `bad_images="error"`), an unknown class,
            an image that another split of `out` holds (without `skip_duplicates`), values of an unknown range, a full
            disk or a read-only folder. `out` is then what it was, but for the list of duplicates.
    """
    if (split is None) == (carve is None):
        raise UserError("say either which --split the images are, or how to carve them with --labels N; not both")
    if shard_size <= 0:
        raise UserError(f"--shard-size must be positive, not {shard_size}")
    with open_source(source, zip_encoding) as files, run_lock(out):
        recovered = recover(out)
        manifest = read_manifest(out) if (out / MANIFEST).exists() else None
        fixed = _known_classes(manifest, classes, out)
        options = _options(classes, value_range, zip_encoding, bad_images)
        command = command or functools.partial(_pack_command, out, options)
        labeled, trusted = split != "unlabeled", classes is not None
        items = arrange(files, labeled=labeled, known=fixed or known, command=command, trusted=trusted)
        names = fixed or tuple(sorted({item.class_name for item in items if item.class_name}))
        _check_classes(items, names, out)
        tick = _ticker(progress, (2 if value_range is None else 3) * len(items))
        images = check_images(
            files,
            items,
            names,
            bad_images,
            workers,
            tick,
            value_range=_agreed(value_range, manifest, out),
            deep_range=_recorded(manifest) if _recorded(manifest) != FULL else None,
        )
        if carve is None:
            splits = np.full(len(images.items), SPLITS.index(split or "unlabeled"), np.uint8)
        else:
            splits = carve_splits(carve, images.labels, images.contents, names)
        overlap = find_overlap(out, manifest, images, splits)
        refuse_elsewhere(overlap, source, out, images, splits, command, skip=skip_duplicates)
        added = ~overlap.present
        added[list(overlap.elsewhere)] = False
        entries: list[ShardEntry] = []
        if added.any():
            record = None if carve is None else _carve_record(carve, source, splits)
            with staged(out) as staging:
                writer = ShardWriter(files, images, out, staging, shard_size, tick)
                for one in SPLITS:
                    rows = np.flatnonzero((splits == SPLITS.index(one)) & added)
                    entries += writer.write_split(one, rows, manifest, with_truth=carve is not None)
                write_manifest(staging, _extend(manifest, names, images, entries, record))
        elsewhere = {images.items[row].name: twin for row, twin in overlap.elsewhere.items()}
        left_out = {
            **{name: f"no image ({kind})" for name, kind in files.ignored.items()},
            **{name: f"bad image: {why}" for name, why in images.skipped.items()},
            **{name: f"equals {twin}" for name, twin in elsewhere.items()},
        }
        listed = list_left_out(out, source, left_out) if entries or manifest else None
    return PackReport(
        out=out,
        classes=names,
        num_files=len(files.names) + len(files.ignored),
        num_samples=dict(_count(entries)),
        shards=tuple(entry.name for entry in entries),
        num_present=int(overlap.present.sum()),
        relabeled=overlap.relabeled,
        num_duplicates=len(images.contents) - len(np.unique(images.contents)),
        conflicts=conflicting(images),
        absent_classes=_absent(images, splits, names, carve),
        ignored=dict(Counter(files.ignored.values())),
        skipped=images.skipped,
        elsewhere=elsewhere,
        left_out=listed,
        empty_folders=files.empty_folders,
        look_alikes=look_alikes(names),
        value_range=images.scaling.range,
        values_found=(images.survey.scaled.low, images.survey.scaled.high),
        odd_metadata=images.survey.odd_metadata,
        more_frames=images.survey.more_frames,
        recovered=recovered,
    )


def _pack_command(out: Path, options: str, folder: Path, split: Split) -> str:
    return f"selftrain pack {shlex.quote(str(folder))} --out {shlex.quote(str(out))} --split {split}{options}"


def _options(
    classes: Path | None, value_range: ValueRange | str | None, zip_encoding: str | None, bad_images: BadImages
) -> str:
    """What is to be typed again beside SOURCE, --out and --split."""
    given = {"--classes": classes, "--value-range": value_range, "--zip-encoding": zip_encoding}
    values = [f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None]
    return "".join([*values, " --skip-bad-images" * (bad_images == "skip")])


def _count(entries: Sequence[ShardEntry]) -> Counter[Split]:
    added: Counter[Split] = Counter()
    for entry in entries:
        added[entry.split] += entry.num_samples
    return added


def _absent(images: Images, splits: U8Array, names: Sequence[str], carve: Carve | None) -> dict[Split, tuple[str, ...]]:
    """The classes without an image, by split: of the splits that images have, or were to have from a carve."""
    absent: dict[Split, tuple[str, ...]] = {}
    for number, split in enumerate(SPLITS):
        wanted = (splits == number).any() or (carve is not None and carve.fraction_of(split) > 0)
        if split != "unlabeled" and wanted:
            seen = set(images.labels[splits == number].tolist())
            absent[split] = tuple(name for class_id, name in enumerate(names) if class_id not in seen)
    return {split: classes for split, classes in absent.items() if classes}


def _agreed(
    value_range: ValueRange | Literal["auto"] | None, manifest: Manifest | None, out: Path
) -> ValueRange | Literal["auto"] | None:
    """The range of values to scale with: one and the same for all that a folder holds."""
    recorded = _recorded(manifest)
    if value_range is None or recorded is None:
        return value_range
    if value_range not in ("auto", recorded):
        raise UserError(f"--value-range {value_range}: {out} was packed with {recorded}; leave it out, or repeat that")
    return None if value_range == "auto" or recorded == FULL else recorded  # None: the recorded one, for deep images


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


def _recorded(manifest: Manifest | None) -> ValueRange | None:
    """The range of the deep images that a folder holds; None without any."""
    return ValueRange(*manifest.value_range) if manifest and manifest.value_range else None


def _extend(
    manifest: Manifest | None,
    classes: tuple[str, ...],
    images: Images,
    entries: Sequence[ShardEntry],
    record: CarveRecord | None,
) -> Manifest:
    manifest = manifest or Manifest(image_size=images.image_size, shards=())
    added = () if record is None else (record,)
    return manifest.model_copy(
        update={
            "classes": manifest.classes or classes,
            "shards": (*manifest.shards, *entries),
            "carves": (*manifest.carves, *added),
            "value_range": manifest.value_range or images.scaling.range or (FULL if images.survey.deep.count else None),
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
