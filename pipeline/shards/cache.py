"""The file of one shard's decoded images: a `.npy` array to be memory-mapped, and behind it a CRC-32 of each image.

A checksum per image rather than per file keeps opening instant, and a random read reads no more than it did. CRC-32
takes 28 ms per 100 MB and finds whatever a disk does to an image, up to one case in four billion.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.arrays import I64Array
from pipeline.errors import UserError
from pipeline.shards.decode import Pixels


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
