"""Parquet files of tiny images, as the Hugging Face hub has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from support.images import png


def write_parquet(
    path: Path,
    numbers: Sequence[int],
    *,
    features: dict[str, object] | None = None,
    columns: dict[str, list[object]] | None = None,
) -> Path:
    """Images by their numbers, in row groups of 3; labels are odd and even unless `columns` has others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = columns if columns is not None else {"label": [number % 2 for number in numbers]}
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    table = pa.table({"image": images, **columns})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path
