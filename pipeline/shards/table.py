"""Tables with one row per sample, such as an index, labels or a selection: Arrow IPC files of one record batch.

They are written whole or not at all, and read as a memory map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.files import SEAL, atomic_file, parsing
from pipeline.stages.fingerprint import once
from pipeline.stages.folder import check_output


class Table(NamedTuple):
    """What a file holds."""

    schema: pa.Schema
    metadata: dict[str, str]
    columns: list[Any]
    """One per field, as read-only views of the file: an array [n] or [n, width], or `Texts`."""


class Texts(Sequence[str]):
    """A column of texts as a sequence. A text is decoded when it is asked for; bytes that are no UTF-8 are escaped."""

    def __init__(self, column: pa.BinaryArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return Texts(self.column[index]) if isinstance(index, slice) else _decode(self.column[index].as_py())

    def __iter__(self) -> Iterator[str]:
        return map(_decode, self.column.to_pylist())


def write_table(
    path: Path,
    schema: pa.Schema,
    metadata: Mapping[str, str],
    columns: Iterable[Sequence[str] | npt.NDArray[Any]],
    *,
    sealed: bool = False,
) -> None:
    """Write one column per field of the schema, uncompressed and atomically.

    Set `sealed` where no stage records the file's digest: `read_table` then knows its content by a digest in it.
    """
    arrays = [_to_arrow(values, field.type) for values, field in zip(columns, schema, strict=True)]
    batch = pa.record_batch(arrays, schema.with_metadata(metadata))
    if sealed:
        batch = batch.replace_schema_metadata({**metadata, SEAL: _seal(batch)})
    with atomic_file(path) as file, pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)


@once
def _is_as_written(path: Path) -> bool:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    seal = (batch.schema.metadata or {}).get(SEAL.encode())
    return seal is None or bool(seal == _seal(batch).encode())


def _seal(batch: pa.RecordBatch) -> str:
    metadata = dict(batch.schema.metadata or {})
    metadata.pop(SEAL.encode(), None)
    state = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for column in batch.columns:
        for buffer in column.buffers():
            state.update(buffer or b"")
    return state.hexdigest()


def read_table(path: Path, fix: str) -> Table:
    """Memory-map a table: nothing is copied.

    Raises:
        UserError: it is missing or damaged; the message ends with the `fix`, unless a stage says what to delete.
    """
    if not check_output(path).exists():
        raise UserError(f"{path} does not exist; {fix}")
    with parsing(f"{path} ({path.stat().st_size} bytes) is truncated or damaged", fix):
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise ValueError("a value is missing")
        if not _is_as_written(path):
            raise ValueError("its content is not what was written")
        columns = [_to_numpy(column) for column in batch.columns]
    metadata = (batch.schema.metadata or {}).items()
    return Table(batch.schema, {k.decode(errors="replace"): v.decode(errors="replace") for k, v in metadata}, columns)


def other_key(found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """The first key in which a table's metadata differ from what is expected; what they have beyond it differs, too.

    None if they are equal.
    """
    return next((key for key in {**expected, **found} if found.get(key) != expected.get(key)), None)


def _to_arrow(values: Sequence[str] | npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values), kind.value_type), type=kind)
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    if pa.types.is_binary(kind):
        return pa.array([value.encode("utf-8", "surrogateescape") for value in values], kind)
    return pa.array(values, kind)


def _to_numpy(column: pa.Array) -> npt.NDArray[Any] | Texts:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return Texts(column.view(pa.binary()))
    if pa.types.is_fixed_size_list(kind):
        return np.asarray(_to_numpy(column.flatten())).reshape(len(column), kind.list_size)
    if pa.types.is_fixed_size_binary(kind):
        return np.frombuffer(column.buffers()[1], f"S{kind.byte_width}", len(column))
    return np.asarray(column.to_numpy(zero_copy_only=True))


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
