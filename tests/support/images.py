"""Tiny real image files in the shapes that people have them."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.demos.digits import load_digits

MakeFolder = Callable[..., Path]


def picture(number: int, size: int = 8) -> np.ndarray:
    """An image that differs for every number."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def png(number: int, size: int = 8) -> bytes:
    return encoded(picture(number, size))


def encoded(pixels: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_raw_tar(path: Path, files: Mapping[str, bytes] | list[tuple[str, bytes]], **kwargs: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **kwargs) as tar:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def class_files(num_per_class: int, classes: str = "cat dog emu", first: int = 0) -> dict[str, bytes]:
    """CLASS/NNNN.png -> bytes, all different."""
    names = classes.split()
    return {
        f"{name}/{number:04d}.png": png(first + index * 1000 + number)
        for index, name in enumerate(names)
        for number in range(num_per_class)
    }


def digit_files(first: int = 0, stop: int | None = None, classes: Sequence[str] = "0123456789") -> dict[str, bytes]:
    """Some of scikit-learn's handwritten digits: CLASS/NNNN.png -> bytes."""
    images, labels = load_digits()
    numbers = range(len(images))[first:stop]
    return {f"{classes[labels[number]]}/{number:04d}.png": encoded(images[number]) for number in numbers}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def left_out_of(out: Path) -> dict[str, str]:
    """What `left_out.csv` of a packed folder says: file -> why."""
    with open(out / "left_out.csv", newline="") as file:
        return {row["file"]: row["why"] for row in csv.DictReader(file)}


def snapshot(folder: Path) -> dict[str, bytes]:
    """All bytes of a packed folder that its results are made of (indexes carry times, so they are left out)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".selftrain." not in path.name and path.name != "run.lock"
    }


@contextlib.contextmanager
def as_nobody(tmp_path: Path) -> Iterator[None]:
    """Root may read everything, so permissions are tested as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    modes = {
        path: path.stat().st_mode
        for path in [tmp_path, *tmp_path.parents]
        if path.name.startswith(("pytest-", "test_"))
    }
    for path, mode in modes.items():
        path.chmod(mode | 0o055)
    os.seteuid(65534)
    try:
        if not os.access(tmp_path, os.X_OK, effective_ids=True):
            pytest.skip("the temporary folder is closed to other users")
        yield
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
