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
from pipeline.files import read_json, write_json
from pipeline.labels.arrow import read_arrow, write_arrow
from pipeline.selection.summary import Summary

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
    """Write selection.arrow (row, copies), selection.json (the summary)."""
    batch = pa.RecordBatch.from_pydict({"row": pa.array(selection.rows), "copies": pa.array(selection.copies)})
    write_arrow(folder / "selection.arrow", batch.replace_schema_metadata({"format": FORMAT}))
    write_json(folder / "selection.json", selection.summary)


def read_selection(folder: Path) -> Selection:
    """Read a selection, memory-mapped. Raises UserError when a file is missing, damaged or foreign."""
    path = folder / "selection.arrow"
    fix = f"delete {folder} and run `selftrain select` again"
    batch = read_arrow(path, fix)
    found = (batch.schema.metadata or {}).get(b"format", b"none").decode()
    if found != FORMAT:
        raise UserError(f"{path} is no selection: expected format {FORMAT}, found {found}; {fix}")
    summary = cast(Summary, read_json(folder / "selection.json"))
    if summary["num_selected"] != batch.num_rows:
        raise UserError(f"{path} has {batch.num_rows} rows, its summary {summary['num_selected']}; {fix}")
    return Selection(batch["row"].to_numpy(), batch["copies"].to_numpy(), summary)
