"""IMAGES of `selftrain predict`: a folder, tar or zip, a folder of tars, or a packed folder, as one list of files."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import SPLITS, CropMode, Data, Interpolation, Split
from pipeline.errors import UserError
from pipeline.packing.source import EXTENSIONS, Source, open_source
from pipeline.shards.dataset import Dataset, Shard, open_split
from pipeline.shards.decode import File, Pixels, decode, read_file, resize_to, to_sample
from pipeline.shards.index import read_sample
from pipeline.shards.magic import image_kind
from pipeline.shards.manifest import MANIFEST, read_manifest
from pipeline.shards.tar import open_shard
from pipeline.shards.values import Facts, facts_of
from pipeline.stages.fingerprint import digest

log = logging.getLogger("selftrain.predict")


class Place(NamedTuple):
    """Where the bytes of an image are."""

    name: str
    """Its path inside IMAGES; of a packed folder, SHARD/KEY."""
    read: Callable[[], bytes]


@dataclass
class Images:
    """All images of IMAGES, in an order that depends on their names alone."""

    places: list[Place] = field(default_factory=list)
    state: list[object] = field(default_factory=list)
    """What tells whether an image is another one than it was: digests of tars, or sizes and times of files."""
    bad: dict[str, str] = field(default_factory=dict)
    """Images that are known to be bad, with the reason."""
    splits: tuple[Split, ...] = ()
    """The splits that they are of, in a packed folder."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def fingerprint(self) -> str:
        """A digest of the names, of their order, and of the state of the files."""
        return digest([[os.fsencode(place.name).hex() for place in self.places], self.state])

    def pixels(self, row: int, size: int, interpolation: Interpolation, crop_mode: CropMode) -> tuple[Pixels, Facts]:
        """An image as a model sees it, uint8 [size, size, 3], as `Reader` decodes it; and what is to be told of it.

        Raises:
            UserError: it cannot be read, or is a vector.
        """
        name, data = self.places[row].name, self.places[row].read()
        is_jpeg = image_kind(data) == "jpg"  # which has 8 bits, and can be decoded at a part of its size
        file = File(decode(data, name, at_least=2 * size)) if is_jpeg else read_file(data, name)
        sample = to_sample(file.values, name)
        if sample.ndim == 1:
            raise UserError(f"{name} is a vector and no image")
        return resize_to(np.asarray(sample, np.uint8), size, interpolation, crop_mode), facts_of(file)


@contextlib.contextmanager
def open_images(path: Path, split: Split | None = None, zip_encoding: str | None = None) -> Iterator[Images]:
    """Open IMAGES; with `split`, that one of a packed folder, of which all are taken otherwise.

    Raises:
        UserError: there are none, there is no such split, or as `open_source` raises it.
    """
    images = Images()
    with contextlib.ExitStack() as stack:
        if (path / MANIFEST).exists():
            packed = read_manifest(path)
            images.splits = (split,) if split else tuple(one for one in SPLITS if packed.of_split(one))
            for one in images.splits:
                _add_split(images, open_split(Data(root=path, bad_images="skip"), one))
        elif split is not None:
            raise UserError(f"--split {split}: {path} is no packed folder, which alone has splits; leave --split out")
        else:
            tars = _tars(path)
            for each in tars or [path]:
                source = stack.enter_context(open_source(each, zip_encoding))
                _add_source(images, source, f"{each.name}/" if tars else "")
        yield images


def _tars(path: Path) -> list[Path]:
    """The tars of a folder that holds neither images beside them nor folders."""
    inside = sorted(each for each in path.iterdir() if each.name[0] != ".") if path.is_dir() else []
    if any(each.is_dir() or each.suffix.lower() in EXTENSIONS for each in inside):
        return []
    return [each for each in inside if each.suffix.lower() == ".tar"]


def _add_source(images: Images, source: Source, prefix: str) -> None:
    if source.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(source.ignored.values()).items())
        log.warning("%s: files that are no images are left out: %s", source.path, kinds)
    if source.parquet is not None:
        files = source.parquet.paths
    elif source.path.is_dir():
        files = tuple(source.path / name for name in source.names)
    else:
        files = (source.path,)
    images.state += map(_state, files)
    images.places += [Place(prefix + name, partial(source.read, name)) for name in source.names]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # such as a link to nothing, which is a bad image
        return None
    return status.st_size, status.st_mtime_ns


def _add_split(images: Images, dataset: Dataset) -> None:
    images.state.append(dataset.fingerprint)
    images.bad |= dataset.skipped
    for shard in dataset.shards:
        keys = enumerate(shard.index.key)
        images.places += [Place(f"{shard.name}/{key}", partial(_read_row, shard, row)) for row, key in keys]


def _read_row(shard: Shard, row: int) -> bytes:
    with open_shard(shard.path) as descriptor:
        return read_sample(descriptor, shard.index, row)
