"""Shards of one split, written into a staging folder with their indexes and, apart, their truth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import I64Array
from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.files import atomic_file
from pipeline.packing.scan import Images
from pipeline.packing.source import Source
from pipeline.shards.decode import decode, encode_png, read_file, stored_format
from pipeline.shards.index import Index, build_index, index_path, write_index
from pipeline.shards.manifest import Manifest, ShardEntry
from pipeline.shards.tar import write_tar
from pipeline.shards.values import facts_of
from pipeline.stages.fingerprint import digest_file


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of `source` into `staging`, numbered after those of `out`."""

    source: Source
    images: Images
    out: Path
    staging: Path
    shard_size: int
    tick: Callable[[int], None]
    verified: bool = False
    """Whether to decode every written image once more: files of a folder that others write into may have changed since
    they were checked."""

    def write_split(
        self, split: Split, rows: I64Array, manifest: Manifest | None, *, with_truth: bool
    ) -> list[ShardEntry]:
        """Spread the rows over shards of equal size, at random but as a function of their keys alone."""
        # Sorted keys would put a class into each shard, and a window of shards would then hold few classes.
        shuffled = sorted(
            rows, key=lambda row: hashlib.blake2b(self.images.items[row].key.encode(), digest_size=8).digest()
        )
        earlier = manifest.of_split(split) if manifest else ()
        number = 1 + max((int(entry.name.rpartition("-")[2]) for entry in earlier), default=-1)
        num_shards = -(-len(rows) // self.shard_size)
        entries = []
        for part in np.array_split(np.array(shuffled, np.int64), num_shards) if num_shards else ():
            entries.append(self._write_shard(f"{split}-{number:06d}", split, np.sort(part), with_truth=with_truth))
            number += 1
        return entries

    def _write_shard(self, name: str, split: Split, rows: I64Array, *, with_truth: bool) -> ShardEntry:
        """Rows are in the order of their keys, so samples are too."""
        if (self.out / f"{name}.tar").exists():
            raise UserError(f"{self.out / name}.tar exists, but the manifest does not list it; move it away")
        path = self.staging / f"{name}.tar"
        write_tar(path, self._files(rows, labeled=split != "unlabeled"))
        known = {self.images.items[row].key: self.images.contents[row] for row in rows}
        index = build_index(path, known_contents=None if self.verified else known)
        if self.verified:
            self._compare(rows, index, known)
        write_index(index_path(path), index)
        truth = self.staging / "truth" / f"{name}.npy"
        if split == "unlabeled" and with_truth:
            with atomic_file(truth) as file:
                np.save(file, self.images.labels[rows])
        return ShardEntry(
            name=name,
            split=split,
            num_samples=len(rows),
            num_bytes=index.tar_size,
            sha256=index.sha256,
            truth_sha256=digest_file(truth) if truth.exists() else None,
        )

    def _compare(self, rows: I64Array, index: Index, known: Mapping[str, np.bytes_]) -> None:
        """Refuse a shard that does not hold what was checked. Raises UserError."""
        wrong = [key for key, content in zip(index.key, index.content, strict=True) if content != known.get(key)]
        if wrong or len(index) != len(rows):
            names = {self.images.items[row].key: self.images.items[row].name for row in rows}
            name = names[wrong[0]] if wrong else "a file"
            raise UserError(f"{self.source.path}: {name} changed while it was packed; pack again when it is complete")

    def _files(self, rows: I64Array, *, labeled: bool) -> Iterator[tuple[str, bytes]]:
        for row in rows:
            item = self.images.items[row]
            extension, data = self._stored(item.name)
            if labeled:
                yield f"{item.key}.cls", b"%d" % self.images.labels[row]
            yield f"{item.key}.{extension}", data
            self.tick(1)

    def _stored(self, name: str) -> tuple[str, bytes]:
        """The extension and the bytes under which an image is stored: the file's own, where they can be kept."""
        data, scaling = self.source.read(name), self.images.scaling
        if scaling.range is not None:
            file = read_file(data, name)
            if (scaled := scaling.pixels(file, facts_of(file))) is not None:
                return "png", encode_png(scaled)
        extension = stored_format(data)
        return (extension, data) if extension else ("png", encode_png(decode(data, name)))
