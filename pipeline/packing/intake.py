"""Take what is new in a watched folder into a packed folder, as unlabeled shards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import as_utf8
from pipeline.packing.archives import open_folder
from pipeline.packing.assign import assign_splits
from pipeline.packing.item import Item, normal, sample_key
from pipeline.packing.news import has_news, note_before, tell
from pipeline.packing.overlap import find_overlap
from pipeline.packing.pack import SHARD_SIZE, extend, recorded_range
from pipeline.packing.scan import NoneReadable, check_images
from pipeline.packing.source import Source, sift
from pipeline.packing.staging import recover, staged
from pipeline.packing.watched import BAD, Known, Stamp, is_known, list_files, read_known, stamp_of, write_known
from pipeline.packing.writer import ShardWriter
from pipeline.shards.index import Progress
from pipeline.shards.manifest import read_manifest, write_manifest
from pipeline.shards.values import FULL
from pipeline.stages.lock import run_lock

SETTLE_S = 60.0
"""A file that changed within so many seconds may still be written."""


@dataclass
class Intake:
    """What an intake did."""

    out: Path
    num_new: int = 0
    """Images packed."""
    shards: list[str] = field(default_factory=list)
    """Names of the new shards."""
    num_present: int = 0
    """Images that the packed folder held already, in any split, or that equal another new one."""
    bad: dict[str, str] = field(default_factory=dict)
    """Files that are in quarantine since this intake, with the reason."""
    num_growing: int = 0
    """Files that changed a moment ago, and are left for the next intake."""
    num_waiting: int = 0
    """Files that wait until there are enough of them."""

    def __str__(self) -> str:
        said = [f"{self.num_new:,} new images in {len(self.shards)} shards"] if self.num_new else []
        counts = {
            "images were there already": self.num_present,
            "bad files in quarantine": len(self.bad),
            "files that are still written": self.num_growing,
            "files that wait for more": self.num_waiting,
        }
        said += [f"{number:,} {what}" for what, number in counts.items() if number]
        return f"{self.out}: {', '.join(said) or 'nothing new'}"


def intake(
    source: Path,
    data: Path,
    *,
    at_least: int = 1,
    settle_s: float = SETTLE_S,
    shard_size: int = SHARD_SIZE,
    workers: int = 0,
    announce: Callable[[int], None] | None = None,
    progress: Progress | None = None,
) -> Intake:
    """Pack the new images of `source`, a folder that others write into, as unlabeled shards of `data`.

    Images that `data` holds already, in any split, are left out by their content. What cannot be decoded is listed in
    `quarantine.csv` of `data`. No file of `source` is moved or changed; `intake.csv` remembers each, so that it is read
    again only if it changes. Every new image is decoded once more from its shard before that is listed. A batch of
    `shard_size` files at a time is packed, each wholly or not at all, so that after a kill the same call goes on.

    Args:
        source: The watched folder; images may lie in subfolders.
        data: A packed folder.
        at_least: Leave the files for a later intake while there are fewer new ones.
        settle_s: Leave files that changed within so many seconds for a later intake, since they may still grow.
        shard_size: The most files that make one shard.
        workers: The number of decoding threads; 0 means one per core.
        announce: Is called at the end with the number of images that `data` got since it was last told, if any. What it
            raises goes to the caller, and the next call tells them again; without it they are told by a later call.
        progress: Is called with the numbers of files done and in total.

    Raises:
        FolderInUse: a run reads `data`, or another process packs into it; the files wait for the next call.
        UserError: `source` is no folder, `data` is no packed folder, the disk is full, or images have values that
            `data` does not take.
    """
    if at_least < 1 or settle_s < 0 or shard_size < 1:
        raise UserError("--at-least and --shard-size must be 1 or more, and --settle 0 or more")
    read_manifest(data)
    files = list_files(source)
    done = Intake(data)
    new = _new(files, read_known(data, source), settle_s, at_least, done)
    if not new and not (announce and has_news(data)):
        return done  # without the lock, for which it would wait while a run reads
    with run_lock(data):
        recover(data)
        known, done = read_known(data, source), Intake(data)
        new = _new(files, known, settle_s, at_least, done)
        there = set(map(as_utf8, files))
        known = {name: one for name, one in known.items() if name in there}
        # Not by name: a shard would get neighbors, such as the frames of one film.
        names = sorted(new, key=lambda name: hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest())
        for start in range(0, len(names), shard_size):
            batch = names[start : start + shard_size]
            became = _pack_batch(source, data, batch, workers, done)
            unchanged = [name for name in became if stamp_of(source / name) == new[name]]
            known |= {as_utf8(name): Known(new[name], became[name]) for name in unchanged}
            write_known(data, source, known)
            done.bad |= {name: became[name].removeprefix(BAD) for name in unchanged if became[name].startswith(BAD)}
            if progress:
                progress(start + len(batch), len(names))
        if announce:
            tell(data, announce)
    return done


def _new(
    files: Mapping[str, Stamp], known: Mapping[str, Known], settle_s: float, at_least: int, done: Intake
) -> dict[str, Stamp]:
    """The files that are to be read now; what is left for later is counted."""
    fresh = {name: stamp for name, stamp in files.items() if not is_known(name, stamp, known)}
    latest_ns = (time.time() - settle_s) * 1e9
    settled = {name: stamp for name, stamp in fresh.items() if settle_s == 0 or stamp.changed_ns <= latest_ns}
    done.num_growing = len(fresh) - len(settled)
    if len(settled) < at_least:
        done.num_waiting = len(settled)
        return {}
    return settled


def _pack_batch(source: Path, data: Path, batch: Sequence[str], workers: int, done: Intake) -> Mapping[str, str]:
    """Pack one batch of files; returns what became of each. The caller holds the lock."""
    folder = open_folder(source, batch)
    names, ignored = sift(folder)
    became = {name: f"no image ({kind})" for name, kind in ignored.items()}
    items: dict[str, Item] = {}
    for name in sorted(names):
        key = sample_key(normal(name))
        if key in items:
            became[name] = f"{BAD}it has the name of {items[key].name} but for the extension; rename it"
        else:
            items[key] = Item(name, key, None)
    if not items:
        return became
    manifest = read_manifest(data)
    files = Source(source, tuple(batch), ignored, (), folder)
    recorded = recorded_range(manifest)
    ordered = [items[key] for key in sorted(items)]
    deep_range = None if recorded == FULL else recorded
    try:
        images = check_images(files, ordered, (), "skip", workers, _silent, deep_range=deep_range)
    except NoneReadable as error:
        return became | {name: f"{BAD}{why}" for name, why in error.skipped.items()}
    assigned = assign_splits(images, (), split="unlabeled", carve=None, skip_duplicates=True)
    overlap = find_overlap(data, manifest, images, assigned)
    rows = np.setdiff1d(np.flatnonzero(~overlap.present), list(overlap.elsewhere))
    if len(rows):
        note_before(data, manifest)
        with staged(data) as staging:
            writer = ShardWriter(files, images, data, staging, len(rows), _silent, verified=True)
            entries = writer.write_split("unlabeled", rows, manifest, with_truth=False)
            write_manifest(staging, extend(manifest, manifest.classes, images, entries, None, {}))
        done.shards += [entry.name for entry in entries]
    done.num_new += len(rows)
    done.num_present += len(images.items) - len(rows)
    became |= {item.name: "there already" for item in images.items}
    became |= {images.items[row].name: f"equals {twin}" for row, twin in overlap.elsewhere.items()}
    became |= {images.items[row].name: "packed" for row in rows}
    return became | {name: f"{BAD}{why}" for name, why in images.skipped.items()}


def _silent(count: int) -> None:
    pass
