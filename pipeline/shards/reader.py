"""Decoded images of a data set at one size: from memory-mapped files of uint8, or decoded as they are asked for."""

from __future__ import annotations

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32Array, I64Array
from pipeline.config import CropMode, Data, Interpolation
from pipeline.errors import UserError
from pipeline.files import atomic_file
from pipeline.shards.cache import CachedImages, open_cache, worth_of, write_cache
from pipeline.shards.dataset import Dataset, Shard
from pipeline.shards.decode import DECODER_VERSION, RESIZE_VERSION, Pixels, Vector, decode, decode_sample, resize_to
from pipeline.shards.exclusive import exclusive
from pipeline.shards.index import Progress, cache_folder, read_sample
from pipeline.shards.tar import open_shard
from pipeline.threads import num_cores

PixelsOf = Callable[[bytes, str, int], Pixels]

_CHUNK = 16  # images per decoding task
_BLOCK = 1024  # images that are decoded before they are written
_NUM_TIMED = 8  # images whose decoding is timed for `data.cache: auto`

log = logging.getLogger("selftrain.data")


class Reader:
    """Decoded images of a data set, uint8 [size, size, 3] each.

    With a cache, a read is one gather from memory-mapped files (over 100,000 CIFAR images per second). Making the
    cache decodes everything once, and several processes share the work and the result. Without a cache, every read is
    a pread and a decoding in a thread pool.

    Raises:
        UserError: the cache cannot be written (full disk, read-only folder).
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        data: Data,
        *,
        interpolation: Interpolation = "bicubic",
        crop_mode: CropMode = "center",
        progress: Progress | None = None,
    ) -> None:
        self._dataset = dataset
        self._size, self._interpolation, self._crop_mode = size, interpolation, crop_mode
        self._shape = (size, size, 3)
        self._pool = ThreadPoolExecutor(data.decode_workers or num_cores(), "decode")
        self._cached: list[CachedImages] | None = None
        folder = cache_folder(data.cache_dir) / "decoded"
        if data.cache == "always" or (data.cache == "auto" and self._is_worth_it(folder)):
            self._cached = self._open_cache(folder, progress)

    def read(self, rows: npt.NDArray[np.integer]) -> Pixels:
        """Images of these rows, uint8 [len(rows), size, size, 3]; any order, duplicates allowed.

        Raises:
            UserError: an image is damaged, in its shard or in the cache.
        """
        if self._cached is None:
            return self.read_files(rows, self._shape, self._fitted)
        images = np.empty((len(rows), *self._shape), np.uint8)
        for shard, where, local in self._by_shard(rows):
            images[where] = self._cached[shard].read(local)
        return images

    def read_files(self, rows: npt.NDArray[np.integer], shape: tuple[int, ...], pixels_of: PixelsOf) -> Pixels:
        """What `pixels_of(bytes, name, place in rows)` makes of the stored files of these rows, uint8 [B, *shape].

        Raises:
            UserError: `pixels_of` raises it.
        """
        images = np.empty((len(rows), *shape), np.uint8)
        tasks = []
        for shard, where, local in self._by_shard(rows):
            for begin in range(0, len(local), _CHUNK):
                part = slice(begin, begin + _CHUNK)
                source = self._dataset.shards[shard]
                tasks.append(self._pool.submit(_fill, images, where[part], source, local[part], pixels_of))
        for task in tasks:
            task.result()
        return images

    def _by_shard(self, rows: npt.NDArray[np.integer]) -> Iterator[tuple[int, I64Array, I64Array]]:
        """Yield (shard, places in `rows`, rows within the shard)."""
        if not len(rows):
            return
        if not 0 <= rows.min() <= rows.max() < len(self._dataset):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self._dataset)}")
        rows = np.asarray(rows, np.int64)
        starts = self._dataset.shard_starts
        shard_of = np.searchsorted(starts, rows, side="right") - 1
        places = np.argsort(shard_of, kind="stable")
        shards, begins = np.unique(shard_of[places], return_index=True)
        for shard, where in zip(shards, np.split(places, begins[1:]), strict=True):
            yield int(shard), where, rows[where] - starts[shard]

    def _fitted(self, data: bytes, name: str, _: int) -> Pixels:
        # Twice the target leaves the resize enough to antialias.
        return resize_to(decode(data, name, at_least=2 * self._size), self._size, self._interpolation, self._crop_mode)

    # ------------------------------------------------------------------------------------------------------- the cache

    def _paths(self, folder: Path) -> list[Path]:
        names = (_cache_name(shard, self._size, self._interpolation, self._crop_mode) for shard in self._dataset.shards)
        return [folder / f"{name}.npy" for name in names]

    def _is_worth_it(self, folder: Path) -> bool:
        """Whether `data.cache: auto` keeps a cache: it is there, or saves time and finds room. One log line tells."""
        shards = self._dataset.shards
        if all(self._map(path, shard) is not None for path, shard in zip(self._paths(folder), shards, strict=True)):
            return True
        worth = worth_of(folder, len(self._dataset), math.prod(self._shape), self._time_decoding())
        does = f"are kept in {folder}" if worth.is_cached else "are decoded each time"
        log.info("data.cache auto: images of %s at %d px %s (%s)", self._dataset.name, self._size, does, worth)
        return worth.is_cached

    def _time_decoding(self) -> float:
        """The seconds of a core that an image takes, as the median of a few from all over the data set."""
        seconds: list[float] = []

        def timed(data: bytes, name: str, place: int) -> Pixels:
            started = time.thread_time()
            pixels = self._fitted(data, name, place)
            seconds.append(time.thread_time() - started)
            return pixels

        num = min(len(self._dataset), _NUM_TIMED)
        self.read_files(np.linspace(0, len(self._dataset) - 1, num).astype(np.int64), self._shape, timed)
        return statistics.median(seconds) if seconds else 0.0

    def _open_cache(self, folder: Path, progress: Progress | None) -> list[CachedImages]:
        paths = self._paths(folder)
        # First take the shards that nobody is at, then wait for those that other processes are making.
        for wait in (False, True):
            for shard, path in zip(self._dataset.shards, paths, strict=True):
                if self._map(path, shard) is None:
                    with exclusive(path.with_suffix(".lock"), wait=wait) as locked:
                        if locked and self._map(path, shard) is None:
                            self._build(path, shard, progress)
        return [self._map_or_raise(path, shard) for path, shard in zip(paths, self._dataset.shards, strict=True)]

    def _map(self, path: Path, shard: Shard) -> CachedImages | None:
        return open_cache(path, shard.num_rows, self._size)

    def _map_or_raise(self, path: Path, shard: Shard) -> CachedImages:
        images = self._map(path, shard)
        if images is None:
            raise UserError(f"{path} vanished while it was in use; keep data.cache_dir, or set data.cache to never")
        return images

    def _build(self, path: Path, shard: Shard, progress: Progress | None) -> None:
        with atomic_file(path) as file:
            write_cache(file, shard.num_rows, self._size, self._decoded(shard, progress))

    def _decoded(self, shard: Shard, progress: Progress | None) -> Iterator[Pixels]:
        """Yield the images of a shard in blocks."""
        for begin in range(0, shard.num_rows, _BLOCK):
            end = min(begin + _BLOCK, shard.num_rows)
            yield self.read_files(np.arange(shard.start + begin, shard.start + end), self._shape, self._fitted)
            if progress:
                progress(shard.start + end, len(self._dataset))


def _fill(images: Pixels, places: I64Array, shard: Shard, rows: I64Array, pixels_of: PixelsOf) -> None:
    with open_shard(shard.path) as descriptor:
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            name = f"{shard.path}: {shard.index.key[row]}"
            images[place] = pixels_of(read_sample(descriptor, shard.index, row), name, place)


def read_vectors(dataset: Dataset) -> F32Array:
    """All samples of a data set of vectors, [N, D].

    Raises:
        UserError: a sample is an image, or a vector of another length than the first.
    """
    rows: list[Vector] = []
    for shard in dataset.shards:
        with open_shard(shard.path) as descriptor:
            for row, key in enumerate(shard.index.key):
                name = f"{shard.path}: {key}"
                vector = decode_sample(read_sample(descriptor, shard.index, row), name)
                if vector.ndim != 1 or (rows and len(vector) != len(rows[0])):
                    raise UserError(f"{name} has shape {list(vector.shape)}; expected vectors of one length (.npy)")
                rows.append(vector.astype(np.float32))
    return np.stack(rows)


def _cache_name(shard: Shard, size: int, interpolation: Interpolation, crop_mode: CropMode) -> str:
    # The offsets tell which samples of the tar are used: skipping bad images changes them, not the tar.
    state = hashlib.blake2b(shard.index.offset.tobytes(), digest_size=16)
    versions = f"{DECODER_VERSION}.{RESIZE_VERSION}"
    state.update(f"{shard.sha256} {size} {versions} {interpolation} {crop_mode}".encode())
    return f"{shard.sha256[:16]}-{size}-{state.hexdigest()}"
