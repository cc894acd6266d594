"""The images of a SOURCE after each was decoded once: the bad ones found, the others hashed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.arrays import I32Array
from pipeline.errors import UserError
from pipeline.packing.source import Item, Source
from pipeline.shards.decode import content_hash, decode_sample, sample_size
from pipeline.shards.index import BadImages
from pipeline.threads import map_chunks


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
    skipped: tuple[str, ...]
    """Bad images, with the reason."""


def check_images(
    source: Source,
    items: Sequence[Item],
    names: Sequence[str],
    bad_images: BadImages,
    workers: int,
    tick: Callable[[int], None],
) -> Images:
    """Decode every image once: find the bad ones, hash the others. `names` are the classes in the order of their ids.

    Raises:
        UserError: there is a bad image, unless `bad_images="skip"`, or no good one.
    """
    good: list[Item] = []
    contents: list[bytes] = []
    sizes: Counter[tuple[int, int]] = Counter()
    skipped: list[str] = []

    def check(item: Item) -> tuple[bytes, tuple[int, int]] | str:
        try:
            sample = decode_sample(source.read(item.name), item.name)
            return content_hash(sample), sample_size(sample)
        except UserError as error:
            return str(error)

    rest = iter(items)
    for results in map_chunks(items, check, workers=workers):
        for result, item in zip(results, rest, strict=False):
            if isinstance(result, str):
                skipped.append(result)
            else:
                good.append(item)
                contents.append(result[0])
                sizes[result[1]] += 1
        tick(len(results))
    if skipped and bad_images == "error":
        more = f" (and {len(skipped) - 3} more)" if len(skipped) > 3 else ""
        raise UserError(f"{source.path}: {'; '.join(skipped[:3])}{more}; repair them, or pack with --skip-bad-images")
    if not good:
        raise UserError(f"{source.path}: none of {len(items)} images is readable, e.g. {skipped[0]}")
    ids = {name: class_id for class_id, name in enumerate(names)}
    labels = np.array([-1 if item.class_name is None else ids[item.class_name] for item in good], np.int32)
    # Of equally common sizes the largest: a tie must not depend on the order of files.
    image_size = max(sizes, key=lambda size: (sizes[size], size))
    return Images(good, labels, np.array(contents, "S16"), image_size, tuple(skipped))


def conflicting(images: Images) -> tuple[str, ...]:
    """Equal images under different classes, one line per group."""
    if len(np.unique(images.contents)) == len(images.contents):
        return ()
    groups: defaultdict[bytes, list[Item]] = defaultdict(list)
    for content, item in zip(images.contents.tolist(), images.items, strict=True):
        groups[content].append(item)
    mixed = [group for group in groups.values() if len({item.class_name for item in group}) > 1]
    return tuple(" = ".join(item.name for item in group) for group in mixed)
