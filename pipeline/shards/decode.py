"""Bytes of a sample to RGB pixels, or to a vector: the same everywhere, in pack, in the index, in training."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import Interpolation
from pipeline.errors import UserError

Pixels = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]
"""[D]"""

DECODER_VERSION = 1
"""Raised when pixels change for equal bytes, with the versions in stages/kinds.py: caches and indexes are made anew."""
MAX_PIXELS = 89_478_485  # Pillow's own limit, about 256 MiB of RGB: a bomb, not a photograph
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # never EPS, which runs ghostscript

Image.init()  # now, in one thread: Pillow registers its formats lazily, and threads that decode would race in it

_NPY = b"\x93NUMPY"


def decode(data: bytes, name: str, *, at_least: int = 0) -> Pixels:
    """Decode to uint8 [H, W, 3] RGB.

    EXIF orientation is applied; greyscale, palette and CMYK are converted; 16-bit values lose their low byte; alpha is
    laid over white; of an animation the first frame counts. `.npy` arrays (uint8, [H, W] or [H, W, 3]) are taken as
    they are. With `at_least` a JPEG may come scaled down by 2, 4 or 8 while both sides stay at least that long, which
    saves most of the decoding of large photographs.

    Raises:
        UserError: not an image, damaged, empty, or more than MAX_PIXELS; the message begins with `name`.
    """
    if not data:
        raise UserError(f"{name} is empty (0 bytes)")
    if data.startswith(_NPY):
        return _npy_pixels(_load_npy(data, name), name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; shrink it")
            if at_least:
                image.draft(None, (at_least, at_least))
            return _rgb(image, name)
    except UserError:
        raise
    except UnidentifiedImageError as error:  # whose text is the address of an object
        raise UserError(f"{name} is not a readable image: its format is unknown") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything, struct.error to IndexError
        raise UserError(f"{name} is not a readable image: {str(error) or type(error).__name__}") from error


def decode_sample(data: bytes, name: str) -> Pixels | Vector:
    """Decode an image, or a vector, which is a `.npy` array of one dimension, to float32 [D].

    Raises:
        UserError: neither, or a vector that is empty or not finite; the message begins with `name`.
    """
    if not data.startswith(_NPY):
        return decode(data, name)
    array = _load_npy(data, name)
    if array.ndim != 1:
        return _npy_pixels(array, name)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must be a vector of finite numbers, not of {array.dtype}")
    vector = array.astype(np.float32)
    if not vector.size or not np.isfinite(vector).all():
        raise UserError(f"{name} must be a vector of finite numbers, at least one")
    return vector


def _rgb(image: Image.Image, name: str) -> Pixels:
    # Looking for EXIF costs as much as decoding a CIFAR image, so JPEGs that announce none are spared.
    if image.format != "JPEG" or "exif" in image.info or "xmp" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{name} holds floating-point pixels, whose range is unknown; save it with 8 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _load_npy(data: bytes, name: str) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise UserError(f"{name} is not a readable .npy array: {error}") from error
    return array


def _npy_pixels(array: npt.NDArray[np.generic], name: str) -> Pixels:
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(f"{name} must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array).astype(np.uint8, copy=False)


def sample_size(sample: Pixels | Vector) -> tuple[int, int]:
    """Height and width; of a vector 1 and its length."""
    height, width = sample.shape[:2] if sample.ndim == 3 else (1, len(sample))
    return height, width


def content_hash(sample: Pixels | Vector) -> bytes:
    """blake2b-128 of shape and values: equal for two files exactly when they decode to the same sample."""
    kind = b"" if sample.ndim == 3 else b"vector "
    state = hashlib.blake2b(kind + b"%dx%d:" % sample_size(sample), digest_size=16)
    state.update(np.ascontiguousarray(sample).data)
    return state.digest()


_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def resize_to(image: Pixels, size: int, interpolation: Interpolation = "bicubic") -> Pixels:
    """Shorter side to `size`, then the centre square: uint8 [size, size, 3]. Pillow's filters, antialiased.

    Identity if the image fits.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    # One call for both keeps the cost bounded: a 1 x 1,000,000 strip must not become 32 x 32,000,000.
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), _FILTERS[interpolation], box=box))


def stored_format(data: bytes) -> str | None:
    """The extension under which these bytes are stored unchanged, by their magic; None if they must be re-encoded."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "npy" if data.startswith(_NPY) else None


def encode_png(image: Pixels) -> bytes:
    """PNG bytes of an image: lossless, for formats that a shard does not hold."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
