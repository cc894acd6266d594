"""Lists for people beside the manifest, with a line per file: what packs left out, which images are equal, and what
came of a watched folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.files import as_utf8, write_csv

LEFT_OUT = "left_out.csv"
DUPLICATES = "duplicates.csv"
INTAKE = "intake.csv"
QUARANTINE = "quarantine.csv"
_COLUMNS = {
    LEFT_OUT: ("source", "file", "why"),
    DUPLICATES: ("source", "file", "split", "equals"),
    INTAKE: ("source", "file", "size", "changed_ns", "became"),
    QUARANTINE: ("source", "file", "why"),
}


def list_left_out(folder: Path, source: Path, why: Mapping[str, str]) -> Path | None:
    """Replace the lines of a source, file -> why; returns the list, or None if nothing was left out of it."""
    return replace_rows(folder / LEFT_OUT, source, sorted(why.items()))


def list_duplicates(folder: Path, source: Path, rows: Iterable[tuple[str, str, str]]) -> Path | None:
    """Replace the lines of a source: file, split, what it equals; returns the list, or None if it has none."""
    return replace_rows(folder / DUPLICATES, source, sorted(rows))


def replace_rows(path: Path, source: Path, lines: Sequence[Sequence[str]]) -> Path | None:
    """Replace the lines of a source in one of the lists; returns the list, or None if the source has no line in it."""
    columns, name = _COLUMNS[path.name], as_utf8(str(source.resolve()))
    others = [row for row in _read(path, columns) if row[0] != name]
    rows = [*others, *([name, *map(as_utf8, line)] for line in lines)]
    if rows:
        write_csv(path, columns, rows)
    elif path.exists():
        path.unlink()
    return path if lines else None


def read_rows(path: Path, source: Path) -> list[list[str]]:
    """The lines of a source in one of the lists, without its own column."""
    name = as_utf8(str(source.resolve()))
    return [row[1:] for row in _read(path, _COLUMNS[path.name]) if row[0] == name]


def _read(path: Path, columns: Sequence[str]) -> list[list[str]]:
    if not path.exists():
        return []
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="replace"), newline="")))
    return [row for row in rows[1:] if len(row) == len(columns)]
