"""Arrow IPC files of one record batch: written whole or not at all, read as a memory map."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.files import atomic_path


def write_arrow(path: Path, batch: pa.RecordBatch) -> None:
    """Write one record batch as an uncompressed Arrow IPC file, atomically."""
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)


def read_arrow(path: Path, fix: str) -> pa.RecordBatch:
    """Memory-map an Arrow IPC file of one record batch. Raises UserError with the `fix` when it is damaged."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
        batch.validate(full=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; {fix}") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        size = path.stat().st_size
        raise UserError(f"{path} ({size} bytes) is truncated or damaged ({error}); {fix}") from error
    return batch
