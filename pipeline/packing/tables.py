"""Tables of labels as people have them: CSV, TSV, semicolons, JSON lines, in UTF-8 or not."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, did_you_mean
from pipeline.packing.archives import read_regular
from pipeline.packing.source import MAX_FILE_BYTES, Source

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
"""Extensions of files that may hold labels."""
_DELIMITERS = (",", "\t", ";", "|")
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


@dataclass(frozen=True)
class Row:
    """A row of a table: a value per column, without white space around it."""

    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table with names of columns."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    encoding: str

    def column(self, wanted: str, option: str) -> str:
        """A column by its name. Raises UserError that lists the columns if there is none."""
        if wanted not in self.columns:
            columns = ", ".join(self.columns)
            hint = did_you_mean(wanted, self.columns)
            raise UserError(f"{option} {wanted}: {self.name} has no such column; its columns are {columns} ({hint})")
        return wanted


def find_table(source: Source, name: str) -> Table:
    """The table of that name: a file of the disk or, if there is none, a file in SOURCE.

    Raises:
        UserError: there is none, or it cannot be read as a table.
    """
    if Path(name).is_file():
        return parse_table(name, read_regular(Path(name), MAX_FILE_BYTES))
    inside = [one for one in source.ignored if one == name] or [
        one for one in source.ignored if one.endswith(f"/{name}")
    ]
    if len(inside) == 1:
        return parse_table(inside[0], source.read(inside[0]))
    if inside:
        raise UserError(f"--labels-csv {name}: {source.path} holds {' and '.join(inside[:2])}; say which")
    found = [one for one, kind in source.ignored.items() if kind in TABLES]
    there = f"there are {', '.join(found[:4])}" if found else "there is no table"
    raise UserError(f"--labels-csv {name} is no file, nor is it in {source.path}, where {there}")


def parse_table(name: str, data: bytes) -> Table:
    """Read a table. Text that is not UTF-8 is taken for Latin-1, which `encoding` says.

    Raises:
        UserError: it has no rows, no names of columns, a line of another length, or is no table.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{name} is no text: {error}; save it as CSV in UTF-8") from error
        encoding, text = "latin-1", data.decode("latin-1")
    if "\0" in text:
        raise UserError(f"{name} is no text; save it as CSV in UTF-8")
    rows = _json_rows(name, text) if text.lstrip()[:1] in ("{", "[") else _csv_rows(name, text)
    if not rows:
        raise UserError(
            f"{name} has no rows of labels; it needs a first line with names of columns, then one per image"
        )
    columns = tuple(dict.fromkeys(column for row in rows for column in row.values))
    return Table(name, columns, tuple(rows), encoding)


def _csv_rows(name: str, text: str) -> list[Row]:
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    columns: list[str] = []
    try:
        for values in reader:
            if not any(values):
                continue
            if not columns:
                columns = [value.strip() for value in values]
                if len(set(columns)) < len(columns):
                    twice = next(column for column, count in Counter(columns).items() if count > 1)
                    raise UserError(f"{name} has two columns called `{twice}`; rename one")
            elif len(values) != len(columns):
                raise UserError(
                    f"{name}, line {reader.line_num}: {len(values)} fields instead of {len(columns)} "
                    f"({', '.join(columns[:6])}); mend the line, such as with quotes around a text with `{delimiter}`"
                )
            else:
                stripped = (value.strip() for value in values)
                rows.append(Row(reader.line_num, dict(zip(columns, stripped, strict=True))))
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}, cannot be read: {error}; save it as CSV in UTF-8") from error
    return rows


def _delimiter(text: str) -> str:
    """What stands between fields: what most divides the first line, and is there as often in the second."""
    first, second = [*text.split("\n", 2)[:2], "", ""][:2]
    counts = {one: (first.count(one) == second.count(one), first.count(one)) for one in _DELIMITERS if one in first}
    return max(counts, key=lambda one: counts[one]) if counts else ","


def _json_rows(name: str, text: str) -> list[Row]:
    rows = []
    lines = [text] if text.lstrip()[:1] == "[" else text.splitlines()
    values: list[object] = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line) if line.strip() else {})
        except ValueError as error:
            raise UserError(f"{name}, line {number}, is not JSON: {error}; write one object per line") from error
    for number, found in enumerate(values[0] if isinstance(values[0], list) else values, start=1):
        if not isinstance(found, dict):
            raise UserError(f"{name}, line {number}, is no JSON object; write one per image")
        if not found:
            continue
        plain = {key: value for key, value in found.items() if not isinstance(value, dict | list)}
        rows.append(Row(number, {k.strip(): "" if v is None else str(v).strip() for k, v in plain.items()}))
    return rows


class ImageNames:
    """The images of a SOURCE by what a table may call them: with or without folders, with or without extension."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for name in names:
            parts = _parts(name)
            self._by_stem.setdefault(os.path.splitext(parts[-1])[0].casefold(), []).append((name, parts))

    def find(self, value: str) -> tuple[str, ...]:
        """The images that a value may mean: none, one, or all of several that it does not tell apart."""
        parts = _parts(value)
        if not parts:
            return ()
        stem, extension = os.path.splitext(parts[-1])
        found = self._by_stem.get(stem.casefold(), [])
        if extension:  # or a dot in a name without extension
            found = [*found, *self._by_stem.get(parts[-1].casefold(), ())]
        scored = [(score, name) for name, image in found if (score := _agreement(parts, image))]
        best = max((score for score, _ in scored), default=None)
        return tuple(name for score, name in scored if score == best)


def _parts(path: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFC", path).replace("\\", "/")
    return tuple(part for part in plain.split("/") if part not in ("", ".", ".."))


def _agreement(value: tuple[str, ...], image: tuple[str, ...]) -> tuple[bool, bool, bool, int] | None:
    """How well the parts of a value fit those of an image, the more the greater; None if it means another one.

    The folders of one must be the last folders of the other. An extension that is given must be there.
    """
    last, name, stem = value[-1], image[-1], os.path.splitext(image[-1])[0]
    if last.casefold() not in (name.casefold(), stem.casefold()):
        return None
    count = min(len(value), len(image)) - 1
    if count and value[-count - 1 : -1] != image[-count - 1 : -1]:
        return None
    return last == name, last in (name, stem), len(value) == len(image), count
