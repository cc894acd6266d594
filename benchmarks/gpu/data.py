"""The images of the benchmark, packed: CIFAR-10 from its tars, and random ones of any size."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack

NUM_LABELED, VAL_FRACTION = 4000, 0.1
TINY = 100
"""One of so many images is taken where the sizes are tiny."""


def pack_cifar(data: Path, folder: Path, *, tiny: bool) -> Path:
    """CIFAR-10 with 4,000 labels from `cifar10-train.tar` and `cifar10-test.tar`."""
    out = folder / "cifar10"
    train, test = (_thinned(data / f"cifar10-{name}.tar", folder, tiny=tiny) for name in ("train", "test"))
    carve = Carve(num_labeled=NUM_LABELED // TINY if tiny else NUM_LABELED, val_fraction=VAL_FRACTION)
    pack(train, out, carve=carve, shard_size=100 if tiny else 5000)
    pack(test, out, split="test")
    return out


def pack_random(folder: Path, size: int, *, tiny: bool) -> Path:
    """Random images of two classes: four squares of color each, under noise, in JPEG."""
    images, draws = folder / f"random-{size}", np.random.default_rng(0)
    for index in range(64 if tiny else 1600):
        path = images / f"class{index % 2}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        squares = np.kron(draws.integers(0, 224, (2, 2, 3)), np.ones((size // 2, size // 2, 1), np.int64))
        pixels = squares + draws.integers(0, 32, (size, size, 1))
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=80)
    carve = Carve(num_labeled=16 if tiny else 200, val_fraction=0.1)
    pack(images, folder / f"packed-{size}", carve=carve, shard_size=16 if tiny else 200)
    return folder / f"packed-{size}"


def _thinned(tar: Path, folder: Path, *, tiny: bool) -> Path:
    """The tar or, for tiny sizes, one with some of its images."""
    if not tiny:
        return tar
    out = folder / tar.name
    with tarfile.open(tar) as source, tarfile.open(out, "w") as target:
        for number, member in enumerate(member for member in source if member.isfile()):
            if number % TINY == 0:
                target.addfile(member, source.extractfile(member))
    return out
