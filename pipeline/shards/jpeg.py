"""Plain JPEG files by libjpeg-turbo without Pillow around it: up to four times as fast, and the same pixels.

A file is plain if two readers cannot understand it in two ways. All others are Pillow's: those with metadata of which
more than EXIF may mean something, CMYK, and whatever libjpeg has an objection to, even one that it repairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

from pipeline.shards.metadata import segments

Pixels = npt.NDArray[np.uint8]

_SHORTEST = {0xE0: (b"JFIF\0", 18), 0xE2: (b"ICC_PROFILE\0", 18), 0xEE: (b"Adobe", 16)}
"""Marker -> how such a segment begins, and its shortest length with the marker: shorter ones are damaged."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # both under the marker 0xE1
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
_INERT = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF}  # tables, comments, and what no reader looks at
_ODD_SCALES_FROM = 8  # libjpeg-turbo also scales by 3/8; from this side on, no two scales give one size


_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""What undoes the EXIF orientation of that number."""


class _Header(NamedTuple):
    height: int
    width: int
    orientation: int


def decode_plain(data: bytes, at_least: int, max_pixels: int) -> Pixels | None:
    """The pixels uint8 [H, W, 3] of a plain JPEG, upright, and scaled down as Pillow's `draft` does it; else None."""
    header = _read_header(data)
    if header is None or not 0 < header.height * header.width <= max_pixels:
        return None
    size = header[:2]
    factor = next((f for f in (8, 4, 2) if min(size) >= f * at_least), 1) if at_least else 1
    if factor > 1 and min(size) < _ODD_SCALES_FROM:
        return None
    height, width = (-(-side // factor) for side in size)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # damaged, if only a little
        return None
    turn = _TURNS.get(header.orientation)
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a plain JPEG, upright, without decoding it; None of any other file."""
    header = _read_header(data)
    if header is None:
        return None
    return (header.width, header.height) if header.orientation in (5, 6, 7, 8) else header[:2]


def _read_header(data: bytes) -> _Header | None:
    """None if the file is not plain."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    size, exif, has_xmp, stop = None, b"", False, 2
    for marker, start, stop in segments(data):
        segment = data[start + 4 : stop]
        if marker in _FRAMES:
            if size or len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
                return None
            size = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
        elif marker == 0xE1 and segment.startswith(_EXIF) and not exif:
            exif = segment
        elif marker == 0xE1 and segment.startswith(_XMP):
            has_xmp = True
        elif marker not in _INERT:
            head, shortest = _SHORTEST.get(marker, (b"", 0))
            if not head or stop - start < shortest or not segment.startswith(head):
                return None
    otherwise = None if has_xmp else 1
    orientation = _orientation(exif, otherwise) if exif else otherwise  # Pillow looks into XMP where EXIF tells none
    if size is None or orientation is None or not data.startswith(b"\xff\xda", stop):
        return None
    return _Header(*size, orientation)


def _orientation(exif: bytes, otherwise: int | None) -> int | None:
    """The orientation that EXIF tells, or `otherwise`; None if it cannot be read."""
    found = Image.Exif()
    try:
        found.load(exif)
        orientation = found.get(ExifTags.Base.Orientation, otherwise)
    except Exception:  # Pillow raises nearly anything of damaged metadata, struct.error to IndexError
        return None
    return orientation if isinstance(orientation, int) else None
