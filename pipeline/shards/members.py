"""The samples of a tar, by the names of its members: the keys, images and labels of WebDataset."""

from __future__ import annotations

import os
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from pipeline.shards.tar import CutTarError, Member, inside_path, open_shard, walk

# A key ends at the first dot of the file name: the rule of webdataset. But names with dates have dots, so that in the
# absence of KEY.jpg a name ends before its last extension.
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_IMAGES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "npy", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pnm"}
)


@dataclass
class Sample:
    """Where the image of a sample lies, with its label (-1: none) and what is wrong with it."""

    offset: int = 0
    size: int = 0
    label: int = -1
    problem: str = "no image"


def scan_members(tar: Path) -> tuple[dict[str, Sample], list[str], str]:
    """The samples of a tar by key, the members that belong to none, and why the tar ends early, if it does."""
    members, cut = [], ""
    try:
        for name, offset, size in walk(tar):
            members.append(Member(inside_path(name, tar), offset, size))
    except CutTarError as error:
        cut = str(error)
    by_first_dot = [_SAMPLE.fullmatch(name) for name, _, _ in members]
    plain = {match[1] for match in by_first_dot if match and match[2].lower() in _IMAGES}
    samples: dict[str, Sample] = {}
    seen: set[str] = set()
    unused: list[str] = []
    with open_shard(tar) as descriptor:
        for (name, offset, size), match in zip(members, by_first_dot, strict=True):
            key, extension = _split_name(name, match, plain) if match else ("", "")
            if extension not in _IMAGES and extension != "cls":
                unused.append(name)
                continue
            sample = samples.setdefault(key, Sample())
            twice = f"{key}.{extension}" in seen
            seen.add(f"{key}.{extension}")
            if twice:
                sample.problem = f"duplicate key: {key}.{extension} is there twice"
            elif extension == "cls":
                _set_label(sample, os.pread(descriptor, min(size, 65), offset))
            elif sample.size or sample.offset:
                sample.problem = "two images with one key"
            else:
                sample.offset, sample.size = offset, size
                sample.problem = "" if sample.problem == "no image" else sample.problem
    return samples, unused, cut


def _split_name(name: str, match: re.Match[str], plain: AbstractSet[str]) -> tuple[str, str]:
    """Key and extension of a member, which `match` splits at its first dot.

    `plain` are the keys of images without another dot: of these `KEY.seg.png` is another field, not an image of its
    own.
    """
    if match[1] in plain:
        return match[1], match[2].lower()
    key, extension = os.path.splitext(name)
    return key, extension[1:].lower()


def _set_label(sample: Sample, data: bytes) -> None:
    text = data.strip()
    if len(data) <= 64 and text.isdigit() and int(text) < 1 << 31:
        sample.label = int(text)
    else:
        sample.problem = f"label {text.decode(errors='replace')!r} is not a class id (0, 1, ...)"
