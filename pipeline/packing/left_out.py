"""The list of what a pack left out: `left_out.csv` beside the manifest, one line per file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from pipeline.files import as_utf8, write_csv

LEFT_OUT = "left_out.csv"
_COLUMNS = ("source", "file", "why")


def list_left_out(folder: Path, source: Path, why: Mapping[str, str]) -> Path | None:
    """Replace the lines of a source, file -> why; returns the list, or None if nothing was left out of it."""
    path, name = folder / LEFT_OUT, as_utf8(str(source.resolve()))
    others = [row for row in _read(path) if row[0] != name]
    rows = [*others, *([name, as_utf8(file), as_utf8(reason)] for file, reason in sorted(why.items()))]
    if rows:
        write_csv(path, _COLUMNS, rows)
    elif path.exists():
        path.unlink()
    return path if why else None


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="replace"), newline="")))
    return [row for row in rows[1:] if len(row) == len(_COLUMNS)]
