"""Files without their metadata: for images whose pixels are good and whose metadata no reader understands."""

from __future__ import annotations

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


def _jpeg(data: bytes) -> bytes:
    kept, position = [data[:2]], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _START_OF_SCAN:
        marker, size = data[position + 1], 2 + int.from_bytes(data[position + 2 : position + 4])
        if marker == _ADOBE or not (_FIRST_APP <= marker <= _LAST_APP or marker == _COMMENT):
            kept.append(data[position : position + size])
        position += size
    return b"".join([*kept, data[position:]])
