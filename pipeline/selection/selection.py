"""A selection: which rows of the unlabeled split train the student, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrays import U32Array
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.selection.summary import Summary
from pipeline.shards.table import read_table, write_table
from pipeline.stages.folder import read_output

FORMAT = "selftrain-selection-1"
SELECTION_FILES = ("selection.arrow", "selection.json")
"""What `write_selection` leaves."""


@dataclass(frozen=True)
class Selection:
    """Selected rows of the unlabeled dataset."""

    rows: U32Array
    """Ascending."""
    copies: npt.NDArray[np.unsignedinteger]
    """How often each is seen in an epoch, at least 1."""
    summary: Summary


def write_selection(folder: Path, selection: Selection) -> None:
    """Write selection.arrow (row, copies) and selection.json (the summary)."""
    schema = pa.schema({"row": pa.uint32(), "copies": pa.from_numpy_dtype(selection.copies.dtype)})
    write_table(folder / "selection.arrow", schema, {"format": FORMAT}, [selection.rows, selection.copies])
    write_json(folder / "selection.json", selection.summary)


def read_selection(folder: Path) -> Selection:
    """Read a selection, memory-mapped. Raises UserError when a file is missing, damaged or foreign."""
    path = folder / "selection.arrow"
    fix = f"delete {folder} and run `selftrain select` again"
    table = read_table(path, fix)
    found = table.metadata.get("format", "none")
    if found != FORMAT:
        raise UserError(f"{path} is no selection: expected format {FORMAT}, found {found}; {fix}")
    summary = cast(Summary, read_output(folder / "selection.json", Summary))
    if table.schema.names != ["row", "copies"] or {column.dtype.kind for column in table.columns} != {"u"}:
        raise UserError(f"{path} is damaged (its columns are {table.schema}); {fix}")
    rows, copies = table.columns
    if (summary["num_selected"], summary["num_copies"]) != (len(rows), int(copies.sum(dtype=np.int64))):
        raise UserError(
            f"{path} has {len(rows)} rows and {copies.sum(dtype=np.int64)} copies, its summary "
            f"{summary['num_selected']} and {summary['num_copies']}; {fix}"
        )
    if len(rows) and not rows.max() < summary["num_rows"]:
        raise UserError(f"{path} is damaged (a row is not in 0..{summary['num_rows'] - 1}); {fix}")
    return Selection(rows, copies, summary)
