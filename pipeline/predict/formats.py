"""The files of a prediction: a table as CSV, TSV, JSON lines or parquet, and features as numpy reads them.

Each is written block after block, so that memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError, did_you_mean
from pipeline.files import atomic_file

Block = Mapping[str, Sequence[str] | np.ndarray]
"""Some rows: name of a column -> its texts, or its numbers float32 [n]."""


def check_extension(path: Path, option: str, known: Iterable[str]) -> None:
    """Raise UserError if no file of that extension is written."""
    if path.suffix.lower() not in known:
        raise UserError(f"{option} {path}: the extension says the format; {did_you_mean(path.suffix.lower(), known)}")
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path} is not a file; choose another name")


def write_rows(path: Path, blocks: Iterable[Block]) -> None:
    """Write a table in the format of its extension, whole or not at all. All blocks have the same columns."""
    with atomic_file(path) as file:
        FORMATS[path.suffix.lower()](file, blocks)


def _delimited(delimiter: str, file: BinaryIO, blocks: Iterable[Block]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    for number, block in enumerate(blocks):
        if number == 0:
            writer.writerow(block)
        writer.writerows(zip(*map(_plain, block.values()), strict=True))
    text.detach()  # or else it closes the file


def _json_lines(file: BinaryIO, blocks: Iterable[Block]) -> None:
    for block in blocks:
        for row in zip(*map(_plain, block.values()), strict=True):
            file.write(json.dumps(dict(zip(block, row, strict=True)), ensure_ascii=False).encode() + b"\n")


def _plain(values: Sequence[str] | np.ndarray) -> list[Any]:
    """A column as Python's values; numbers with the six digits that float32 is sure of."""
    return [float(f"{value:.6g}") for value in values] if isinstance(values, np.ndarray) else list(values)


def _parquet(file: BinaryIO, blocks: Iterable[Block]) -> None:
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        writer = None
        for block in blocks:
            kinds = {name: pa.float32() if isinstance(block[name], np.ndarray) else pa.string() for name in block}
            table = pa.table(dict(block), schema=pa.schema(kinds))
            writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
            writer.write_table(table)


FORMATS: dict[str, Callable[[BinaryIO, Iterable[Block]], None]] = {
    ".csv": lambda file, blocks: _delimited(",", file, blocks),
    ".tsv": lambda file, blocks: _delimited("\t", file, blocks),
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""Extension of a table -> the function that writes it."""

FEATURES = (".npy", ".npz")
"""The extensions of features."""


def write_features(path: Path, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write float16 [N, D] in the format of numpy, whole or not at all; in an .npz under the name `features`."""
    with atomic_file(path) as file, _array_file(path, file) as array:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(array, header)
        for block in blocks:
            array.write(np.ascontiguousarray(block, "<f2").tobytes())


@contextlib.contextmanager
def _array_file(path: Path, file: BinaryIO) -> Iterator[IO[bytes]]:
    if path.suffix.lower() == ".npy":
        yield file
        return
    with zipfile.ZipFile(file, "w") as archive, archive.open("features.npy", "w", force_zip64=True) as member:
        yield member
