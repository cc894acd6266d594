"""The images of the benchmark, packed: CIFAR-10 from its tars, and random ones of any size."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.threads import map_chunks

NUM_LABELED, VAL_FRACTION = 4000, 0.1
TINY = 100
"""One of so many images is taken where the sizes are tiny."""


def pack_cifar(data: Path, folder: Path, *, tiny: bool) -> Path:
    """CIFAR-10 with 4,000 labels from `cifar10-train.tar` and `cifar10-test.tar`."""
    out = folder / "cifar10"
    train, test = (_thinned(data / f"cifar10-{name}.tar", folder, tiny=tiny) for name in ("train", "test"))
    carve = Carve(num_labeled=NUM_LABELED // TINY if tiny else NUM_LABELED, val_fraction=VAL_FRACTION)
    pack(train, out, carve=carve, shard_size=100 if tiny else 10_240)
    pack(test, out, split="test")
    return out


def pack_random(folder: Path, size: int, *, tiny: bool) -> Path:
    """Random images of two classes in JPEG: four squares of color each, under noise."""
    images, out = folder / f"random-{size}", folder / f"packed-{size}"
    for number in range(2):
        (images / f"class{number}").mkdir(parents=True)

    def write(index: int) -> None:
        draws = np.random.default_rng(index)
        squares = np.kron(draws.integers(0, 224, (2, 2, 3), np.uint8), np.ones((size // 2, size // 2, 1), np.uint8))
        pixels = squares + draws.integers(0, 32, (size, size, 1), np.uint8)
        Image.fromarray(pixels).save(images / f"class{index % 2}" / f"{index:06d}.jpg", quality=80)

    for _ in map_chunks(range(64 if tiny else 4096), write):
        pass
    carve = Carve(num_labeled=16 if tiny else 256, val_fraction=0.1 if tiny else 0.05)
    pack(images, out, carve=carve, shard_size=16 if tiny else 2048)
    return out


def _thinned(tar: Path, folder: Path, *, tiny: bool) -> Path:
    """The tar or, for tiny sizes, one with some of its images."""
    if not tar.exists():
        raise UserError(f"{tar} does not exist; --data is the folder of cifar10-train.tar and cifar10-test.tar")
    if not tiny:
        return tar
    out = folder / tar.name
    with tarfile.open(tar) as source, tarfile.open(out, "w") as target:
        for number, member in enumerate(member for member in source if member.isfile()):
            if number % TINY == 0:
                target.addfile(member, source.extractfile(member))
    return out
