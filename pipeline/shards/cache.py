"""The file of one shard's decoded images: a `.npy` array to be memory-mapped, and behind it a CRC-32 of each image.

A checksum per image rather than per file keeps opening instant, and a random read reads no more than it did. CRC-32
takes 28 ms per 100 MB and finds whatever a disk does to an image, up to one case in four billion.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil

from pipeline.arrays import I64Array
from pipeline.errors import UserError
from pipeline.shards.decode import Pixels

_DISK_SHARE = 0.25  # of what is free, up to which `data.cache: auto` takes
_MEMORY_SHARE = 0.5  # of all, up to which what was read once stays in memory
_MEMORY_BYTES_PER_S, _DISK_BYTES_PER_S = 2e9, 200e6
_GATHER_S = 5e-6  # per image, whatever its size
_TIMES_FASTER = 2  # than decoding


class CachedImages:
    """The decoded images of one shard, which are checked when this process first reads them."""

    def __init__(self, path: Path, images: Pixels, sums: np.ndarray) -> None:
        self.path, self.images, self._sums = path, images, sums
        self._unchecked = np.ones(len(images), bool)

    def read(self, rows: I64Array) -> Pixels:
        """A copy of these images, [B, S, S, 3].

        Raises:
            UserError: one of them is damaged.
        """
        images: Pixels = self.images[rows]
        for place in np.flatnonzero(self._unchecked[rows]):
            if zlib.crc32(images[place]) != self._sums[rows[place]]:
                raise UserError(
                    f"{self.path} is damaged in image {rows[place]}; delete this file, and the same command decodes "
                    "its images anew"
                )
        self._unchecked[rows] = False
        return images


def open_cache(path: Path, num_images: int, size: int) -> CachedImages | None:
    """Memory-map a file of so many images of this size; None if it is absent, damaged or another, to be made anew."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        sums = np.fromfile(path, "<u4", offset=images.offset + images.nbytes)
    except Exception:  # np.load raises nearly anything at damaged headers, tokenize.TokenError to AttributeError
        return None
    fits = images.dtype == np.uint8 and images.shape == (num_images, size, size, 3) and len(sums) == num_images
    return CachedImages(path, images, sums) if fits else None


def write_cache(file: BinaryIO, num_images: int, size: int, blocks: Iterable[Pixels]) -> None:
    """Write blocks of images, [n, S, S, 3] each, one after the other.

    It never writes through a mapping: on a full disk that would be SIGBUS, not an error.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    sums: list[int] = []
    for images in blocks:
        file.write(images.data)
        sums += map(zlib.crc32, images)
    file.write(np.array(sums, "<u4").tobytes())


@dataclass(frozen=True)
class Worth:
    """What a cache of decoded images would take and give."""

    num_bytes: int
    free_bytes: int
    """What is free on the disk where the cache would be."""
    decode_s: float
    """The time of a core that an image takes to be decoded."""
    read_s: float
    """The time that it takes to be read from the cache."""

    @property
    def is_cached(self) -> bool:
        """Whether reading saves at least half of the time, and the disk has room for it."""
        fits = self.num_bytes <= _DISK_SHARE * self.free_bytes
        return fits and self.decode_s >= _TIMES_FASTER * self.read_s

    def __str__(self) -> str:
        decode_ms, read_ms = 1000 * self.decode_s, 1000 * self.read_s
        return (
            f"{self.num_bytes / 1e9:.2g} of {self.free_bytes / 1e9:.2g} GB that are free; an image takes "
            f"{decode_ms:.2g} ms to decode, {read_ms:.2g} ms to read"
        )


def worth_of(folder: Path, num_images: int, image_bytes: int, decode_s: float) -> Worth:
    """What a cache in this folder, which need not exist yet, would take and give."""
    num_bytes = num_images * image_bytes
    fits = num_bytes <= _MEMORY_SHARE * psutil.virtual_memory().total
    read_s = _GATHER_S + image_bytes / (_MEMORY_BYTES_PER_S if fits else _DISK_BYTES_PER_S)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return Worth(num_bytes, shutil.disk_usage(there).free, decode_s, read_s)
