"""Pack a SOURCE of images into shards, as one split or carved into several."""

from __future__ import annotations

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.arrays import U8Array
from pipeline.config import SPLITS, Split
from pipeline.errors import UserError, did_you_mean
from pipeline.packing.assign import assign_splits
from pipeline.packing.carve import Carve, fewer_labels
from pipeline.packing.item import Item, look_alikes
from pipeline.packing.labeling import BY_FOLDERS, Labeling, tell_apart
from pipeline.packing.layout import Command
from pipeline.packing.left_out import list_duplicates, list_left_out
from pipeline.packing.outcome import PackReport, absent, count, note_of_bare, note_of_splits
from pipeline.packing.overlap import find_overlap, refuse_elsewhere
from pipeline.packing.scan import Images, check_images, conflicting
from pipeline.packing.source import open_source
from pipeline.packing.staging import recover, staged
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
    labeling: Labeling = BY_FOLDERS,
    value_range: ValueRange | Literal["auto"] | None = None,
    zip_encoding: str | None = None,
    known: tuple[str, ...] = (),
    command: Command | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Pack `source` into `out` as one split, carved into several, or (without both) into the splits that it has itself,
    all labeled if it has none; appends when `out` holds shards already.

    The bytes of JPEG, PNG and WebP files are stored unchanged; other formats become PNG, and so does what is scaled
    with `value_range`. Equal images and arguments give equal tars, whatever the order of files and the number of
    workers (0: one per core). Images that their split of `out` holds already are left out, so the same command typed
    again adds nothing. Whatever else is left out is listed in `left_out.csv`. Images that `out` has unlabeled
    and that are labeled now, or val or test, are left out of the unlabeled split from then on; the shard stays.

    `known` are names that folders of classes may have, and `command` writes the commands that messages propose, where
    another verb than pack reads the images.

    Raises:
        UserError: bad arguments, a layout that is not clear, a bad image (with `bad_images="error"`), an unknown class,
            an image that another split holds (without `skip_duplicates`), values of an unknown range, a full disk or a
            read-only folder. `out` is then what it was, but for the list of duplicates.
    """
    if split is not None and carve is not None:
        raise UserError("say either which --split the images are, or how to carve them with --labels; not both")
    if split == "unlabeled" and labeling != BY_FOLDERS:
        raise UserError(f"--split unlabeled takes no labels; leave{labeling.options()} out")
    if shard_size <= 0:
        raise UserError(f"--shard-size must be positive, not {shard_size}")
    with open_source(source, zip_encoding) as files, run_lock(out):
        recovered = recover(out)
        manifest = read_manifest(out) if (out / MANIFEST).exists() else None
        fixed = _known_classes(manifest, classes, out)
        options = _options(classes, shard_size, value_range, zip_encoding, bad_images)
        again = "" if command else _again(source, out, split, carve, f"{options}{labeling.options()}")
        command = command or functools.partial(_pack_command, out, options)
        told = tell_apart(
            files,
            labeling,
            split=split,
            known=fixed or known,
            command=command,
            again=again,
            trusted=classes is not None,
        )
        names = fixed or tuple(sorted({item.class_name for item in told.items if item.class_name}))
        _check_classes(told.items, names, out)
        tick = _ticker(progress, (2 if value_range is None else 3) * len(told.items))
        images = check_images(
            files,
            told.items,
            names,
            bad_images,
            workers,
            tick,
            value_range=_agreed(value_range, manifest, out),
            deep_range=recorded_range(manifest) if recorded_range(manifest) != FULL else None,
        )
        assigned = assign_splits(images, names, split=split, carve=carve, skip_duplicates=skip_duplicates)
        splits, carve = assigned.splits, assigned.carve
        overlap = find_overlap(out, manifest, images, assigned)
        if not skip_duplicates:
            refuse_elsewhere(overlap, source, out, images, assigned, command=command, again=again)
        stays = ~assigned.bare
        stays[list(overlap.elsewhere)] = False
        added = ~overlap.present & stays
        splits = np.where(stays, splits, np.uint8(len(SPLITS)))  # what is left out counts in none
        entries: list[ShardEntry] = []
        if added.any():
            record = None if carve is None else _carve_record(carve, source, splits)
            with staged(out) as staging:
                writer = ShardWriter(files, images, out, staging, shard_size, tick)
                for one in SPLITS:
                    rows = np.flatnonzero((splits == SPLITS.index(one)) & added)
                    entries += writer.write_split(one, rows, manifest, with_truth=carve is not None)
                write_manifest(staging, extend(manifest, names, images, entries, record, overlap.moved))
        elsewhere = {images.items[row].name: twin for row, twin in overlap.elsewhere.items()}
        left_out = {
            **{name: f"no image ({kind})" for name, kind in files.ignored.items()},
            **told.left_out,
            **{name: f"bad image: {why}" for name, why in images.skipped.items()},
            **{images.items[row].name: "it has no label" for row in np.flatnonzero(assigned.bare)},
            **{name: f"equals {twin}" for name, twin in elsewhere.items()},
        }
        changed = bool(entries or manifest)
        listed = list_left_out(out, source, left_out) if changed else None
        equal = [
            (images.items[row].name, SPLITS[splits[row]], images.items[first].name)
            for row, first in assigned.equal.items()
            if stays[row]
        ]
        duplicates = list_duplicates(out, source, equal) if changed else None
    labeled = images.labels[splits == SPLITS.index("labeled")]
    return PackReport(
        out=out,
        classes=names,
        num_files=len(files.names) + len(files.ignored),
        num_samples=count(entries),
        shards=tuple(entry.name for entry in entries),
        num_present=int(overlap.present.sum()),
        num_moved=sum(map(len, overlap.moved.values())),
        relabeled=overlap.relabeled,
        num_duplicates=len(images.contents) - len(np.unique(images.contents)),
        conflicts=conflicting(images),
        absent_classes=absent(images, splits, names, carve),
        fewer_labels=fewer_labels(carve, labeled, names) if carve is not None else {},
        ignored=dict(Counter(kind for name, kind in files.ignored.items() if name not in told.left_out)),
        skipped=images.skipped,
        elsewhere=elsewhere,
        duplicates=duplicates,
        num_left_out=len(left_out),
        left_out=listed,
        notes=(*told.notes, *note_of_splits(images, splits), *note_of_bare(assigned.bare)),
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
    classes: Path | None,
    shard_size: int,
    value_range: ValueRange | str | None,
    zip_encoding: str | None,
    bad_images: BadImages,
) -> str:
    """What is to be typed again beside SOURCE, --out and --split."""
    size = shard_size if shard_size != SHARD_SIZE else None
    given = {"--classes": classes, "--shard-size": size, "--value-range": value_range, "--zip-encoding": zip_encoding}
    values = [f" {option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None]
    return "".join([*values, " --skip-bad-images" * (bad_images == "skip")])


def _again(source: Path, out: Path, split: Split | None, carve: Carve | None, options: str) -> str:
    """The command that was typed, to be typed again with more."""
    typed = f" --split {split}" if split else ""
    if carve is not None:
        typed = f" --labels {carve.num_labeled}{' --proportional' * carve.proportional}"
        given = {
            "val-fraction": carve.val_fraction,
            "test-fraction": carve.test_fraction or None,
            "seed": carve.seed or None,
        }
        typed += "".join(f" --{option} {value}" for option, value in given.items() if value is not None)
    return f"selftrain pack {shlex.quote(str(source))} --out {shlex.quote(str(out))}{typed}{options}"


def _agreed(
    value_range: ValueRange | Literal["auto"] | None, manifest: Manifest | None, out: Path
) -> ValueRange | Literal["auto"] | None:
    """The range of values to scale with: one and the same for all that a folder holds."""
    recorded = recorded_range(manifest)
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
            raise UserError(
                f"{item.name}: unknown class `{item.class_name}`; {out} has other classes: {hint}; images of labels "
                "that are no classes are unlabeled with --drop, or left out with --leave-out beside it"
            )


def recorded_range(manifest: Manifest | None) -> ValueRange | None:
    """The range of the deep images that a folder holds; None without any."""
    return ValueRange(*manifest.value_range) if manifest and manifest.value_range else None


def extend(
    manifest: Manifest | None,
    classes: tuple[str, ...],
    images: Images,
    entries: Sequence[ShardEntry],
    record: CarveRecord | None,
    moved: Mapping[str, tuple[int, ...]],
) -> Manifest:
    """The manifest of a folder with more shards."""
    manifest = manifest or Manifest(image_size=images.image_size, shards=())
    added = () if record is None else (record,)
    shards = [one.without(moved[one.name]) if one.name in moved else one for one in manifest.shards]
    return manifest.model_copy(
        update={
            "classes": manifest.classes or classes,
            "shards": (*shards, *entries),
            "carves": (*manifest.carves, *added),
            "value_range": manifest.value_range or images.scaling.range or (FULL if images.survey.deep.count else None),
        }
    )


def _carve_record(carve: Carve, source: Path, splits: U8Array) -> CarveRecord:
    return CarveRecord(
        source=source.resolve().name.encode("utf-8", "replace").decode(),
        seed=carve.seed,
        num_labeled=carve.num_labeled,
        proportional=carve.proportional,
        val_fraction=carve.val_fraction or 0.0,
        test_fraction=carve.test_fraction,
        num_samples={split: int((splits == number).sum()) for number, split in enumerate(SPLITS)},
    )
