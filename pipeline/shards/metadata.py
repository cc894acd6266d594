"""Files without their metadata: for images whose pixels are good and whose metadata no reader understands."""

from __future__ import annotations

from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS_OF_PNG = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA"}
_ADOBE = 0xEE  # tells CMYK from YCCK
_FIRST_APP, _LAST_APP, _COMMENT, _START_OF_SCAN = 0xE0, 0xEF, 0xFE, 0xDA


def without_metadata(data: bytes) -> bytes:
    """A PNG with the chunks that its pixels need alone, a JPEG without APP segments and comments; others as they are.

    The formats are those of the PNG specification (W3C 2003, section 5) and of JPEG (ITU-T T.81, annex B).
    """
    if data.startswith(_PNG):
        return _png(data)
    return _jpeg(data) if data.startswith(b"\xff\xd8") else data


def _png(data: bytes) -> bytes:
    kept, position = [_PNG], len(_PNG)
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4])
        chunk = data[position : position + 12 + size]
        if chunk[4:8] in _PIXELS_OF_PNG:
            kept.append(chunk)
        position += 12 + size
    return b"".join([*kept, data[position:]])  # a file that is cut stays cut


def segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of the segments before the pixels of a JPEG, as far as there are any."""
    start = 2
    while start + 4 <= len(jpeg) and jpeg[start] == 0xFF and jpeg[start + 1] != _START_OF_SCAN:
        stop = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])
        yield jpeg[start + 1], start, stop
        start = stop


def _jpeg(data: bytes) -> bytes:
    kept, rest = [data[:2]], 2
    for marker, start, rest in segments(data):
        if marker == _ADOBE or not (_FIRST_APP <= marker <= _LAST_APP or marker == _COMMENT):
            kept.append(data[start:rest])
    return b"".join([*kept, data[rest:]])
