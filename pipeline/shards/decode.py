"""Bytes of a sample to RGB pixels, or to a vector: the same everywhere, in pack, in the index, in training."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.config import CropMode, Interpolation
from pipeline.errors import UserError
from pipeline.shards.jpeg import decode_plain
from pipeline.shards.magic import HEAD, describe, image_kind
from pipeline.shards.metadata import without_metadata

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float32]
"""[D]"""
Values = npt.NDArray[np.integer | np.floating]
"""[H, W], [H, W, 3] or [D]."""

DECODER_VERSION = 2
"""Raised when pixels change for equal bytes, with the versions in stages/kinds.py, or when more files can be read:
caches and indexes are made anew."""
RESIZE_VERSION = 2
"""Raised when `resize_to` makes other pixels of an image, with the versions in stages/kinds.py: caches are made anew.
Indexes, which are of images as they are stored, stay."""
MAX_PIXELS = 89_478_485  # Pillow's own limit, about 256 MiB of RGB: a bomb, not a photograph
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # never EPS, which runs ghostscript

warnings.filterwarnings("ignore", module=r"PIL\b")  # such as of damaged metadata, which pack counts
Image.init()  # now, in one thread: Pillow registers its formats lazily, and threads that decode would race in it

_PHOTOMETRIC = 262
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes the EXIF orientation of that number."""


def decode(data: bytes, name: str, *, at_least: int = 0) -> Pixels:
    """Decode to uint8 [H, W, 3] RGB.

    EXIF orientation is applied; greyscale, palette and CMYK are converted; 16-bit values lose their low byte; alpha is
    laid over white; of an animation the first frame counts. `.npy` arrays (uint8, [H, W] or [H, W, 3]) are taken as
    they are. Metadata that are damaged cost no pixels: they are left out. With `at_least` a JPEG may come scaled down
    by 2, 4 or 8 while both sides stay at least that long, which saves most of the decoding of large photographs.

    Raises:
        UserError: not an image, damaged, empty, or more than MAX_PIXELS; the message begins with `name`.
    """

    def pixels(image: Image.Image, _: bool) -> Pixels:
        if at_least:
            image.draft(None, (at_least, at_least))
        return _as_pixels(_values(image, _turn(image)[0]), name)

    if (plain := decode_plain(data, at_least, MAX_PIXELS)) is not None:
        return plain
    if image_kind(data) == "npy":
        return _as_pixels(_npy_values(data, name), name)
    return _with_image(data, name, pixels)


def decode_sample(data: bytes, name: str) -> Pixels | Vector:
    """Decode an image, or a vector, which is a `.npy` array of one dimension, to float32 [D].

    Raises:
        UserError: neither, or a vector that is empty or not finite; the message begins with `name`.
    """
    return to_sample(read_file(data, name).values, name)


class File(NamedTuple):
    """What a file holds, before its values are made 8-bit pixels."""

    values: Values
    """[H, W], [H, W, 3] or [D]."""
    high_bytes: bool = False
    """It has 16 bits per colour, of which the values are the high bytes."""
    odd_metadata: bool = False
    """Its metadata are damaged and were left out."""
    more_frames: bool = False
    """It has other frames or pages than the first, which is taken."""
    peak: int | None = None
    """The largest value before a transparent image was laid over white; None without transparency."""


def read_file(data: bytes, name: str) -> File:
    """Decode as `decode` does, but leave values of more than 8 bits as they are, and say what is lost.

    Raises:
        UserError: as `decode`.
    """

    def everything(image: Image.Image, bare: bool) -> File:
        turn, odd = _turn(image)
        values = _values(image, turn)
        high_bytes = values.dtype == np.uint8 and _bits(image, data) > 8
        peak = None
        if high_bytes and image.has_transparency_data:
            peak = int(np.asarray(image.convert("RGBA"))[:, :, :3].max())
        return File(values, high_bytes, bare or odd, bool(getattr(image, "is_animated", False)), peak)

    if (plain := decode_plain(data, 0, MAX_PIXELS)) is not None:
        return File(plain)
    return File(_npy_values(data, name)) if image_kind(data) == "npy" else _with_image(data, name, everything)


def to_sample(values: Values, name: str) -> Pixels | Vector:
    """What `decode_sample` makes of decoded values. Raises UserError as it does."""
    if values.ndim != 1:
        return _as_pixels(values, name)
    vector = values.astype(np.float32)
    if not vector.size or not np.isfinite(vector).all():
        raise UserError(f"{name} must be a vector of finite numbers, at least one")
    return vector


def _with_image(data: bytes, name: str, use: Callable[[Image.Image, bool], T], *, bare: bool = False) -> T:
    """Open an image and use it; where that fails, once more without its metadata. `use` is told whether it is bare."""
    if not data:
        raise UserError(f"{name} is empty (0 bytes)")
    try:
        return use(_open(data, name), bare)
    except UserError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything, struct.error to IndexError
        if not bare and (pixels_only := without_metadata(data)) != data:
            return _with_image(pixels_only, name, use, bare=True)
        if isinstance(error, UnidentifiedImageError):  # whose text is the address of an object
            what = describe(data[:HEAD])
            raise UserError(f"{name} is not a readable image: its bytes are {what}") from error
        raise UserError(f"{name} is not a readable image: {str(error) or type(error).__name__}") from error


def _open(data: bytes, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.format == "PNG" and b"IDAT" not in data:  # Pillow would make it black
        raise ValueError("it has no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; shrink it")
    return image


def _values(image: Image.Image, turn: Image.Transpose | None) -> Values:
    # Pillow turns the values of such a TIFF around if they have 8 bits, and leaves those of 16.
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        values: Values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ValueError("it holds numbers that are not finite")
        return 0xFFFF - values if white_is_zero and values.dtype.kind == "u" else values
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # which would copy


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per value in the file."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,))))
    return data[24] if image.format == "PNG" else 8


def _turn(image: Image.Image) -> tuple[Image.Transpose | None, bool]:
    """How to turn an image upright, and whether its metadata cannot be read, which turns nothing."""
    image.load()  # or else reading EXIF does, and what it raises of broken pixels would be taken for broken metadata
    # Looking for EXIF costs as much as decoding a CIFAR image, so JPEGs that announce none are spared.
    if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
        return None, False
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1)), False
    except Exception:  # as in `_with_image`
        return None, True


def _as_pixels(values: Values, name: str) -> Pixels:
    """Values [H, W] or [H, W, 3] as uint8 [H, W, 3]: of more than 8 bits, the high byte of 16."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3) or not values.size:
        raise UserError(f"{name} must be uint8 [H, W, 3], not {values.dtype} {list(values.shape)}")
    if values.dtype.kind not in "ui":
        raise UserError(
            f"{name} holds {values.dtype} pixels, whose range is unknown; pack it with --value-range LOW,HIGH, or save "
            "it with 8 bits"
        )
    if values.dtype != np.uint8:
        values = (np.clip(values.astype(np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)
    return as_rgb(values.astype(np.uint8, copy=False))


def as_rgb(pixels: Pixels) -> Pixels:
    """uint8 [H, W] or [H, W, 3] as [H, W, 3]."""
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2))


def _npy_values(data: bytes, name: str) -> Values:
    try:
        array: Values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy raise nearly anything, SyntaxError to tokenize's errors
        raise UserError(f"{name} is not a readable .npy array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must hold finite numbers, not {array.dtype}")
    if array.ndim == 1:
        return array
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise UserError(f"{name} must be [H, W] or [H, W, 3], or a vector [D], not {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name} holds numbers that are not finite; save it without them")
    return array


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


def resize_to(
    image: Pixels, size: int, interpolation: Interpolation = "bicubic", crop_mode: CropMode = "center"
) -> Pixels:
    """The centre square at `size`, or with `squash` the whole image: uint8 [size, size, 3].

    Pillow's filters, antialiased. The square lies on whole pixels, where torchvision's CenterCrop has it (of a margin
    of half a pixel, to the even number), so an image whose shorter side is `size` is cut and not filtered. Identity if
    the image fits.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    left, top = round((width - side) / 2), round((height - side) / 2)
    # One call for both keeps the cost bounded: a 1 x 1,000,000 strip must not become 32 x 32,000,000.
    box = (0, 0, width, height) if crop_mode == "squash" else (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), _FILTERS[interpolation], box=box))


def stored_format(data: bytes) -> str | None:
    """The extension under which these bytes are stored unchanged, by their magic; None if they must be re-encoded."""
    kind = image_kind(data)
    return None if kind == "gif" else kind


def encode_png(image: Pixels) -> bytes:
    """PNG bytes of an image: lossless, for formats that a shard does not hold."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
