"""The images of a SOURCE after each was decoded once: the bad ones found, the others hashed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I32Array
from pipeline.errors import UserError
from pipeline.packing.item import Item
from pipeline.packing.source import Source
from pipeline.shards.decode import File, Pixels, content_hash, read_file, sample_size, to_sample
from pipeline.shards.index import BadImages
from pipeline.shards.values import Facts, Survey, ValueRange, facts_of
from pipeline.threads import map_chunks

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Scaling:
    """Which images a range of values is for: the deep ones, or if SOURCE has none, all. The default is for none."""

    range: ValueRange | None = None
    deep_only: bool = True

    def pixels(self, file: File, facts: Facts) -> Pixels | None:
        """The scaled pixels of a file; None if its values stay as they are."""
        if self.range is None or facts.kind == "vector" or (self.deep_only and facts.kind == "image"):
            return None
        return self.range.pixels(file.values)


@dataclass(frozen=True)
class Images:
    """The good images of SOURCE, in the order of their keys."""

    items: list[Item]
    labels: I32Array
    """Class ids [N]; -1 without a class."""
    contents: npt.NDArray[np.bytes_]
    """Content hashes [N], S16."""
    image_size: tuple[int, int]
    """The most common (height, width)."""
    skipped: dict[str, str]
    """Bad images, with the reason."""
    survey: Survey
    scaling: Scaling
    """What was done to their values."""


class NoneReadable(UserError):
    """All images of a SOURCE are bad."""

    def __init__(self, message: str, skipped: dict[str, str]) -> None:
        super().__init__(message)
        self.skipped = skipped
        """Each image, with the reason."""


class _Checked(NamedTuple):
    content: bytes
    size: tuple[int, int]
    facts: Facts


@dataclass
class _Scan:
    """What a pass over the images has found so far."""

    good: list[Item] = field(default_factory=list)
    checked: list[_Checked] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    survey: Survey = field(default_factory=Survey)


def check_images(
    source: Source,
    items: Sequence[Item],
    names: Sequence[str],
    bad_images: BadImages,
    workers: int,
    tick: Tick,
    *,
    value_range: ValueRange | Literal["auto"] | None = None,
    deep_range: ValueRange | None = None,
) -> Images:
    """Decode every image once: find the bad ones, hash the others.

    Args:
        source: The opened SOURCE.
        items: Its images.
        names: The classes in the order of their ids.
        bad_images: Whether bad images are an error or left out.
        workers: The number of threads; 0 means one per core.
        tick: Is called with numbers of decoded images.
        value_range: The values that become black and white; `auto` decodes everything twice to find them.
        deep_range: The same, for images of more than 8 bits only, if `value_range` is None.

    Raises:
        NoneReadable: all images are bad, and `bad_images="skip"`.
        UserError: there is a bad image, unless `bad_images="skip"`; images and vectors are mixed; or values do not use
            the range of their kind, so that the images would be nearly black.
    """
    scaling = Scaling(deep_range)
    if value_range is not None:
        survey = _pass(source, items, Scaling(ValueRange(0, 1)), workers, tick).survey
        found = survey.scaled
        wanted = ValueRange(found.low, found.high) if value_range == "auto" else value_range
        if not wanted.low < wanted.high:
            raise UserError(f"{source.path}: --value-range auto finds values from {found.low:g} to {found.high:g} only")
        scaling = Scaling(wanted, deep_only=survey.deep.count > 0)
        if not scaling.deep_only and not 0 <= wanted.low < wanted.high <= 255:
            raise UserError(
                f"{source.path}: --value-range {wanted} is for more than 8 bits, which no image has; drop it"
            )
        if why := survey.outside(wanted):
            raise UserError(
                f"{source.path}: --value-range {wanted} is not that of the images: {why}; give another, or auto"
            )
    scan = _pass(source, items, scaling, workers, tick)
    skipped = list(scan.skipped.values())
    if why := _wrong_values(scan.survey, scaling, inherited=value_range is None):
        raise UserError(f"{source.path}: {why}")
    if skipped and bad_images == "error":
        more = f" (and {len(skipped) - 3} more)" if len(skipped) > 3 else ""
        raise UserError(f"{source.path}: {'; '.join(skipped[:3])}{more}; repair them, or pack with --skip-bad-images")
    if not scan.good:
        raise NoneReadable(f"{source.path}: none of {len(items)} images is readable, e.g. {skipped[0]}", scan.skipped)
    ids = {name: class_id for class_id, name in enumerate(names)}
    labels = np.array([-1 if item.class_name is None else ids[item.class_name] for item in scan.good], np.int32)
    sizes = Counter(one.size for one in scan.checked)
    # Of equally common sizes the largest: a tie must not depend on the order of files.
    image_size = max(sizes, key=lambda size: (sizes[size], size))
    contents = np.array([one.content for one in scan.checked], "S16")
    return Images(scan.good, labels, contents, image_size, scan.skipped, scan.survey, scaling)


def _wrong_values(survey: Survey, scaling: Scaling, *, inherited: bool) -> str:
    """Why the images would become wrong pixels; empty if they would not."""
    deep, given = survey.deep, scaling.range
    if given is None or (scaling.deep_only and not deep.count):
        return survey.mixture() or survey.dark_colours() or survey.unused_range()
    if inherited and not (given.low <= deep.low and deep.high <= given.high and not survey.outside(given)):
        return (
            f"{deep} hold values from {deep.low:g} to {deep.high:g}, and this folder was packed with --value-range "
            f"{given}; repeat that to take them so, or pack all into another --out"
        )
    return survey.mixture() or survey.dark_colours()


def _pass(source: Source, items: Sequence[Item], scaling: Scaling, workers: int, tick: Tick) -> _Scan:
    def check(item: Item) -> _Checked | str:
        try:
            file = read_file(source.read(item.name), item.name)
            facts = facts_of(file)
            if scaling.range is None and facts.kind == "deep image" and not facts.whole:
                return _Checked(b"", (0, 0), facts)  # the survey refuses them all
            scaled = scaling.pixels(file, facts)
            sample = to_sample(file.values, item.name) if scaled is None else scaled
            return _Checked(content_hash(sample), sample_size(sample), facts)
        except UserError as error:
            return str(error)

    scan, rest = _Scan(), iter(items)
    for results in map_chunks(items, check, workers=workers):
        for result, item in zip(results, rest, strict=False):
            if isinstance(result, str):
                scan.skipped[item.name] = result
            else:
                scan.good.append(item)
                scan.checked.append(result)
                scan.survey.add(item.name, result.facts)
        tick(len(results))
    return scan


def conflicting(images: Images) -> tuple[str, ...]:
    """Equal images under different classes, one line per group."""
    if len(np.unique(images.contents)) == len(images.contents):
        return ()
    groups: defaultdict[bytes, list[Item]] = defaultdict(list)
    for content, item in zip(images.contents.tolist(), images.items, strict=True):
        groups[content].append(item)
    mixed = [group for group in groups.values() if len({item.class_name for item in group} - {None}) > 1]
    return tuple(" = ".join(item.name for item in group) for group in mixed)
