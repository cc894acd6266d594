"""The values that samples hold: what is to be told about them, and how those of other ranges become 8-bit pixels.

Many cameras and scanners write 8, 10, 12 or 14 bits into files of 16. Taken as 16 bits such images are nearly black,
and a network trains on them without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.shards.decode import File, Pixels, Values, as_rgb

_DARK_16, _DARK_8 = (1 << 14) - 1, 15
"""If no value of a whole data set is above, its images do not use the range of their kind."""
_BITS = (8, 10, 12, 14)


class ValueRange(NamedTuple):
    """The values that become black and white."""

    low: float
    high: float

    def pixels(self, values: Values) -> Pixels:
        """Values [H, W] or [H, W, 3] as uint8 [H, W, 3]; those outside the range are clipped."""
        scaled = (values.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return as_rgb(np.rint(np.clip(scaled, 0, 255)).astype(np.uint8))

    def __str__(self) -> str:
        return f"{_number(self.low)},{_number(self.high)}"


FULL = ValueRange(0, 0xFFFF)
"""The range of 16 bits, of which the high byte is taken."""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def parse_range(text: str) -> ValueRange | Literal["auto"]:
    """`LOW,HIGH` as a range, or `auto`. Raises UserError when it is neither."""
    if text == "auto":
        return "auto"
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--value-range {text} is not LOW,HIGH, such as 0,4095; nor auto") from error
    if not -np.inf < low < high < np.inf:
        raise UserError(f"--value-range {text}: LOW must be below HIGH, and both finite")
    return ValueRange(low, high)


class Facts(NamedTuple):
    """What is to be told about one sample."""

    kind: Literal["image", "deep image", "vector"]
    """Images are deep with more than 8 bits, or with numbers that are not whole."""
    low: float
    high: float
    whole: bool
    """Its numbers are integers."""
    mean: float
    high_bytes: bool
    odd_metadata: bool
    more_frames: bool


def facts_of(file: File) -> Facts:
    """What is to be told about a file's values."""
    values, others = file.values, (file.high_bytes, file.odd_metadata, file.more_frames)
    if values.ndim == 1:
        return Facts("vector", 0, 0, False, 0, *others)
    kind: Literal["image", "deep image"] = "image" if values.dtype == np.uint8 else "deep image"
    whole = values.dtype.kind in "ui"
    high = values.max() if file.peak is None else file.peak
    return Facts(kind, float(values.min()), float(high), whole, float(values.mean(dtype=np.float64)), *others)


@dataclass
class _Found:
    """Samples of one kind: their number, the first of them, and the range of their values."""

    count: int = 0
    name: str = ""
    low: float = 0.0
    high: float = 0.0
    whole: bool = True
    mean: float = 0.0
    """Over images, of the mean of each."""
    num_dim: int = 0
    """Images in which no value is above the limit of `add`."""
    dim_high: float = 0.0
    """The largest value in those."""

    def add(self, name: str, facts: Facts, limit: float) -> None:
        if not self.count:
            self.name, self.low, self.high = name, facts.low, facts.high
        self.count += 1
        self.mean += (facts.mean - self.mean) / self.count
        self.low, self.high = min(self.low, facts.low), max(self.high, facts.high)
        self.whole = self.whole and facts.whole
        if facts.high <= limit:
            self.num_dim += 1
            self.dim_high = max(self.dim_high, facts.high)

    @property
    def is_dim(self) -> bool:
        """Whether nine of ten images are: one bright image does not make the others bright."""
        return self.count > 0 and 10 * self.num_dim >= 9 * self.count

    def join(self, other: _Found) -> None:
        """Add the samples of another source."""
        if not other.count:
            return
        if not self.count:
            self.name, self.low, self.high = other.name, other.low, other.high
        self.mean = (self.mean * self.count + other.mean * other.count) / (self.count + other.count)
        self.count += other.count
        self.num_dim += other.num_dim
        self.dim_high = max(self.dim_high, other.dim_high)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.whole = self.whole and other.whole

    def __str__(self) -> str:
        return f"{self.count} image{'s'[: self.count > 1]}, such as {self.name},"


@dataclass
class Survey:
    """What is to be told about the samples of a whole source."""

    plain: _Found = field(default_factory=_Found)
    deep: _Found = field(default_factory=_Found)
    high_bytes: _Found = field(default_factory=_Found)
    vectors: _Found = field(default_factory=_Found)
    odd_metadata: int = 0
    more_frames: int = 0

    def add(self, name: str, facts: Facts) -> None:
        """Add a sample."""
        found = {"image": self.plain, "deep image": self.deep, "vector": self.vectors}[facts.kind]
        if facts.high_bytes:
            self.high_bytes.add(name, facts, _DARK_16 >> 8)
        else:
            found.add(name, facts, _DARK_16 if facts.kind == "deep image" else _DARK_8)
        self.odd_metadata += facts.odd_metadata
        self.more_frames += facts.more_frames

    @property
    def scaled(self) -> _Found:
        """The images that a range is for: the deep ones, and if there are none, all."""
        return self.deep if self.deep.count else self.plain

    def mixture(self) -> str:
        """Why the samples cannot train one network; empty if they can."""
        num_images = self.plain.count + self.deep.count + self.high_bytes.count
        if not self.vectors.count or not num_images:
            return ""
        return f"{self.vectors.name} is a vector, and {num_images} other samples are images; take it out"

    def dark_colours(self) -> str:
        """Why colours of 16 bits would become nearly black; empty if they would not. Only their high bytes are read."""
        found = self.high_bytes
        if not found.is_dim:
            return ""
        bits = 8 + int(found.dim_high).bit_length()
        return (
            f"{found} hold colours of 16 bits but use {bits} at most, and would be nearly black; save them with 8 bits"
        )

    def unused_range(self) -> str:
        """Why the images would become wrong pixels, with the option of pack that mends it; empty if they would not.

        Only a whole source can tell: a single image may be dark.
        """
        deep, plain = self.deep, self.plain
        if deep.count and not deep.whole:
            return f"{deep} hold numbers from {deep.low:g} to {deep.high:g} of unknown range; {_advice(deep)}"
        if deep.count and (deep.is_dim or deep.low < 0 or deep.high > 0xFFFF):
            some = (
                f", {deep.num_dim} of them none above {deep.dim_high:g},"
                if deep.high > _DARK_16 and deep.num_dim
                else ""
            )
            return f"{deep} hold values from {deep.low:g} to {deep.high:g}{some} in place of 16 bits; {_advice(deep)}"
        if plain.is_dim and not deep.count and not self.high_bytes.count:
            return f"{plain} hold no value above {plain.dim_high:g} of 255, so they are nearly black; {_advice(plain)}"
        return ""

    def outside(self, given: ValueRange) -> str:
        """Why a range is not that of these images; empty if it may be."""
        found, span = self.scaled, given.high - given.low
        if not found.count or (given.low <= found.mean <= given.high and found.high - given.low > span / 16):
            return ""
        return f"{found} hold values from {found.low:g} to {found.high:g}, {found.mean:.4g} on average"


def survey_of(stored: Mapping[str, Any]) -> Survey:
    """The survey that `dataclasses.asdict` was taken of."""
    values: dict[str, Any] = {name: _Found(**v) if isinstance(v, dict) else v for name, v in stored.items()}
    return Survey(**values)


def merge(surveys: Sequence[Survey]) -> Survey:
    """The survey of several sources as one."""
    merged = Survey()
    for survey in surveys:
        for name in ("plain", "deep", "high_bytes", "vectors"):
            getattr(merged, name).join(getattr(survey, name))
        merged.odd_metadata += survey.odd_metadata
        merged.more_frames += survey.more_frames
    return merged


def _advice(found: _Found) -> str:
    if found.low == found.high:
        return "all of their values are equal, so there is nothing to see; look at them"
    most = found.dim_high if found.is_dim else found.high
    bits = next((bits for bits in _BITS if most < 1 << bits), 0)
    if not found.whole or found.low < 0 or not bits:
        whole_unit = not found.whole and found.low >= 0 and found.high <= 1
        given = ValueRange(0, 1) if whole_unit else ValueRange(found.low, found.high)
        return f"say which of them are black and white with --value-range {given}"
    high = (1 << bits) - 1 if most > _DARK_8 else int(most)
    return f"say which of them are black and white with --value-range 0,{high}, or auto for the values found"
