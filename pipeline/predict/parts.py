"""The finished parts of a prediction, in a folder beside the table that they become, so that a kill loses little.

A part is a table of the rows of so many images, and appears whole or not at all. A record in the folder says of which
prediction the parts are, so that those of two are never mixed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.arrays import F32Array, I32Array
from pipeline.errors import UserError
from pipeline.files import Json, read_json, write_sealed
from pipeline.shards.table import read_table, write_table
from pipeline.shards.values import Survey, survey_of

RECORD = "prediction.json"
_LOCK = "run.lock"


@dataclass(frozen=True)
class Part:
    """What a model says of n images, and which others of the part are bad."""

    names: Sequence[str]
    ids: I32Array
    """The classes of the k highest probabilities, [n, k]."""
    top: F32Array
    """These probabilities, [n, k]."""
    probabilities: F32Array | None
    """Those of all classes, [n, C], if they were asked for."""
    features: np.ndarray | None
    """float16 [n, D], if they were asked for."""
    bad: Mapping[str, str]
    """Bad images, with the reason."""
    survey: Survey
    """What is to be told about the values of the images."""


def begin(folder: Path, record: Mapping[str, Json], files: Sequence[Path], *, overwrite: bool) -> None:
    """Begin a prediction in a locked folder, or go on with it. One that has begun may write its files.

    Raises:
        UserError: the folder holds parts of another prediction, or a file exists, without `overwrite`.
    """
    path = folder / RECORD
    if path.exists():
        found = read_json(path)
        if found == record:
            return
        if not overwrite:
            others = ", ".join(sorted(key for key in record.keys() | found.keys() if record.get(key) != found.get(key)))
            raise UserError(
                f"{folder} holds the parts of another prediction, which did not finish (not the same: {others}); type "
                "its command again to finish it, choose another --out, or pass --overwrite to begin anew"
            )
        remove(folder)
    refuse_existing(files, overwrite=overwrite)
    write_sealed(path, dict(record))


def has_begun(folder: Path) -> bool:
    """Whether there is a prediction to go on with."""
    return (folder / RECORD).exists()


def refuse_existing(files: Sequence[Path], *, overwrite: bool) -> None:
    """Raise UserError if a file exists and may not be replaced."""
    if not overwrite and (taken := [file for file in files if file.exists()]):
        raise UserError(f"{taken[0]} exists; choose another name, or pass --overwrite to replace it")


def remove(folder: Path) -> None:
    """Remove the parts and the record, which goes first: what a kill leaves is then no prediction."""
    (folder / RECORD).unlink(missing_ok=True)
    for path in folder.glob("*.arrow"):
        path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove the folder of a prediction that is done or has not begun. What is not of ours stays."""
    remove(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def part_path(folder: Path, number: int) -> Path:
    """The file of a part."""
    return folder / f"{number:06d}.arrow"


def write_part(path: Path, part: Part) -> None:
    """Write a part, whole or not at all."""
    columns = {"ids": part.ids, "top": part.top, "probabilities": part.probabilities, "features": part.features}
    arrays = {name: values for name, values in columns.items() if values is not None}
    kinds = {name: pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1]) for name, values in arrays.items()}
    metadata = {"bad": json.dumps(dict(part.bad)), "survey": json.dumps(asdict(part.survey))}
    schema = pa.schema({"names": pa.binary(), **kinds})
    write_table(path, schema, metadata, [part.names, *arrays.values()], sealed=True)


def read_part(path: Path) -> Part:
    """Read a part. Raises UserError when it is damaged."""
    table = read_table(path, "delete it and type the command again")
    columns = dict(zip(table.schema.names, table.columns, strict=True))
    return Part(
        **{name: columns.get(name) for name in ("names", "ids", "top", "probabilities", "features")},  # type: ignore[arg-type]
        bad=json.loads(table.metadata["bad"]),
        survey=survey_of(json.loads(table.metadata["survey"])),
    )
