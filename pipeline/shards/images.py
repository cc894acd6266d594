"""The images of a SOURCE after each was decoded once: the bad ones found, the others hashed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.runtime import num_cores
from pipeline.shards.decode import content_hash, decode_sample, sample_size
from pipeline.shards.index import BadImages
from pipeline.shards.source import Item, Source

_CHUNK = 64  # images a decoding task


@dataclass(frozen=True)
class Images:
    """The good images of SOURCE, in the order of their keys."""

    items: list[Item]
    labels: npt.NDArray[np.int32]
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

    def check(begin: int) -> list[tuple[bytes, tuple[int, int]] | str]:
        results: list[tuple[bytes, tuple[int, int]] | str] = []
        for item in items[begin : begin + _CHUNK]:
            try:
                sample = decode_sample(source.read(item.name), item.name)
                results.append((content_hash(sample), sample_size(sample)))
            except UserError as error:
                results.append(str(error))
        return results

    with ThreadPoolExecutor(workers or num_cores()) as pool:
        for number, results in enumerate(pool.map(check, range(0, len(items), _CHUNK))):
            for item, result in zip(items[number * _CHUNK :], results, strict=False):
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
    """Equal images under different classes, a line each."""
    if len(np.unique(images.contents)) == len(images.contents):
        return ()
    groups: defaultdict[bytes, list[Item]] = defaultdict(list)
    for content, item in zip(images.contents.tolist(), images.items, strict=True):
        groups[content].append(item)
    mixed = [group for group in groups.values() if len({item.class_name for item in group}) > 1]
    return tuple(" = ".join(item.name for item in group) for group in mixed)
