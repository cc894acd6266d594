"""Labels in a table beside images, which pack does not read: the command that makes class folders of them."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.config import Split
from pipeline.packing.source import Source

Command = Callable[[Path, Split], str]
"""The command that does with a folder, as images of a split, what the user wants to do with SOURCE."""

TABLES = {".csv": ",", ".tsv": "\t"}
"""Extension -> delimiter."""
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed", "y")


def advice_for_table(source: Source, table: str, command: Command) -> str:
    """The command that makes class folders by a table of labels, where all of its rows tell how."""
    generic = f"labels are not read from {table}; make a folder per class as it says, and give the folder of these"
    found = _read_table(source, table)
    if found is None or not source.path.is_dir():
        return generic
    image, label, folder, suffix = found
    out = source.path.with_name(f"{source.path.name}-by-class")
    script = (
        f"import csv, pathlib, shutil\n"
        f"table = pathlib.Path({str(source.path / table)!r}).read_text('utf-8-sig').splitlines()\n"
        f"for row in csv.DictReader(table, delimiter={TABLES[source.ignored[table]]!r}):\n"
        f"    folder = pathlib.Path({str(out)!r}, row[{label!r}])\n"
        f"    folder.mkdir(parents=True, exist_ok=True)\n"
        f"    name = pathlib.Path(row[{image!r}]).name + {suffix!r}\n"
        f"    shutil.copy(pathlib.Path({str(source.path / folder)!r}, name), folder)"
    )
    return (
        f"labels are not read from {table}; make a folder per class, and give the folder of these:\n"
        f"python3 -c {shlex.quote(script)} &&\n{command(out, 'labeled')}"
    )


def _read_table(source: Source, table: str) -> tuple[str, str, str, str] | None:
    """The columns of images and labels, the folder of all images, and the suffix that their names lack.

    None if not every row names one image of that folder and a label that can be a folder's name.
    """
    text, rows = _read(source, table)
    folders = {str(PurePosixPath(name).parent) for name in source.names}
    suffixes = {PurePosixPath(name).suffix for name in source.names}
    if not rows or len(folders) > 1 or '"' in text:
        return None
    columns = [column for column in rows[0] if column is not None]
    names = {PurePosixPath(name).name for name in source.names}
    if {PurePosixPath(column).name for column in columns if column} & names:  # the first row is no header
        return None
    for image in columns:
        for suffix in ("", *(suffixes if len(suffixes) == 1 else ())):
            if not all(row[image] and PurePosixPath(row[image]).name + suffix in names for row in rows):
                continue
            others = [column for column in columns if column != image]
            label = next((c for c in others if c.lower() in _LABEL_COLUMNS), others[0] if len(others) == 1 else None)
            if label is not None and all(_is_folder_name(row[label]) for row in rows):
                return image, label, folders.pop(), suffix
    return None


def has_other_labels(source: Source, table: str, paths: Sequence[Sequence[str]], depth: int) -> bool:
    """Whether a table beside class folders has a row per image and other labels than the folders."""
    _, rows = _read(source, table)
    folder_of = {PurePosixPath(parts[-1]).stem: parts[depth] for parts in paths if len(parts) > depth + 1}
    told = [
        (row, PurePosixPath(value).stem) for row in rows for value in row.values() if isinstance(value, str) and value
    ]
    named = [(row, folder_of[stem]) for row, stem in told if stem in folder_of]
    return len(named) >= len(paths) / 2 and not any(folder in row.values() for row, folder in named)


def _read(source: Source, table: str) -> tuple[str, list[dict[str, str]]]:
    """The text of a table and its rows; none of one that is not in UTF-8, or that csv cannot read."""
    try:
        text = source.read(table).decode("utf-8-sig")
        return text, list(csv.DictReader(text.splitlines(), delimiter=TABLES[source.ignored[table]]))
    except (UnicodeDecodeError, csv.Error):
        return "", []


def _is_folder_name(label: str | None) -> bool:
    return bool(label) and label is not None and label.strip("./ ") == label and "/" not in label
