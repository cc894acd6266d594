"""Labels that a table gives to the images beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import UserError, did_you_mean
from pipeline.packing.columns import Columns, choose_columns, split_like
from pipeline.packing.item import SPLIT_WORDS, Item, Told
from pipeline.packing.source import Source
from pipeline.packing.tables import TABLES, ImageNames, Row, Table, parse_table


def label_by_table(
    source: Source,
    items: Sequence[Item],
    table: Table,
    again: str,
    *,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
) -> Told:
    """Give images the labels of the table, and its splits if a column of them is named.

    Args:
        source: The opened SOURCE.
        items: Its images, without classes.
        table: The table.
        again: The command that was typed, for messages.
        image: The column of images; None if it is clear.
        label: That of labels; None if it is clear.
        split: That of splits; None to use none.

    Raises:
        UserError: columns that are not clear, a value that may mean several images, an image with two labels,
            an unknown split, or no row with an image.
    """
    names = ImageNames(source.names)
    columns = choose_columns(table, names, again, image=image, label=label, split=split)
    found: dict[str, tuple[Row, str | None, str]] = {}
    absent: dict[str, str] = {}
    read = {table.name: "a table, whose labels were read"} if table.name in source.ignored else {}
    for row in table.rows:
        value = row.values.get(columns.image, "")
        where = f"{table.name}, line {row.line}"
        images = names.find(value)
        if len(images) > 1:
            raise UserError(f"{where}: {value} may be {images[0]} or {images[1]}; write the path with its folder")
        if not images:
            absent[f"{table.name}: {value or 'no name'} (line {row.line})"] = "no such image"
            continue
        told, part = columns.label_of(row, where), row.values.get(columns.split or "", "")
        if (earlier := found.get(images[0])) and earlier[1:] != (told, part):
            raise UserError(
                f"{where}: {images[0]} is {told or 'without a label'} here and {earlier[1] or 'without one'} in line "
                f"{earlier[0].line}; remove one of the lines"
            )
        found[images[0]] = row, told, part
    if not found:
        value = table.rows[0].values.get(columns.image, "")
        raise UserError(
            f"no row of {table.name} names an image of {source.path}: its column {columns.image} has {value!r}, and an "
            f"image is called {source.names[0]}; name another column with --image-column"
        )
    labeled = [_with_row(item, table.name, *found[item.name]) if item.name in found else item for item in items]
    return Told(labeled, {**read, **absent}, tuple(_notes(table, columns, len(items) - len(found), len(absent))))


def _with_row(item: Item, table: str, row: Row, label: str | None, split: str) -> Item:
    if split and split.lower() not in SPLIT_WORDS:
        raise UserError(
            f"--split-column: {table}, line {row.line} has the split {split!r} "
            f"({did_you_mean(split.lower(), SPLIT_WORDS)}); write train, val, test, unlabeled or nothing"
        )
    return replace(item, class_name=label, split=SPLIT_WORDS.get(split.lower()), origin=split.lower())


def _notes(table: Table, columns: Columns, num_bare: int, num_absent: int) -> list[str]:
    notes = [f"labels are from {table.name}, columns {columns.image} and {columns.label or 'one per class'}"]
    if table.encoding == "latin-1":
        notes.append(f"{table.name} is not in UTF-8; it was read as Latin-1, so look at the names of classes")
    if columns.split is None and (unused := split_like(table)):
        notes.append(f"its column {unused} was not used; --split-column {unused} takes the splits from it")
    if num_bare:
        notes.append(f"{num_bare:,} images have no row in {table.name}, so they have no label")
    if num_absent:
        notes.append(f"{num_absent:,} rows of {table.name} name no image; they are listed")
    return notes


def advice_for_table(source: Source, table: str, again: str) -> str:
    """What to type so that labels are read from a file beside images."""
    if not again:
        return f"labels are not read from {table} here; make a folder per class as it says"
    command = f"{again} --labels-csv {shlex.quote(table)}"
    try:
        parsed = parse_table(table, source.read(table))
        columns = choose_columns(parsed, ImageNames(source.names), command)
    except UserError as error:
        return f"it is not clear how {table} has labels ({error})"
    label = "" if columns.label is None else f" --label-column {shlex.quote(columns.label)}"
    return f"read the labels in {table}:\n  {command} --image-column {shlex.quote(columns.image)}{label}"


def has_other_labels(source: Source, table: str, folder_of: dict[str, str]) -> bool:
    """Whether a table beside class folders has a row per image and other labels than the folders.

    `folder_of` has the class folder of each image.
    """
    try:
        rows = parse_table(table, source.read(table)).rows
    except UserError:
        return False
    names = ImageNames(source.names)
    told = [
        (row, folder_of[images[0]])
        for row in rows
        for value in row.values.values()
        if len(images := names.find(value)) == 1 and images[0] in folder_of
    ]
    return len(told) >= len(folder_of) / 2 and not any(folder in row.values.values() for row, folder in told)


def splits_not_read(source: Source) -> tuple[str, ...]:
    """That a table beside class folders has a column of splits, by which nothing is told apart, as sentences."""
    notes = []
    for table in (name for name, kind in source.ignored.items() if kind in TABLES):
        try:
            parsed = parse_table(table, source.read(table))
        except UserError:  # somebody else's table
            continue
        if column := split_like(parsed):
            options = f"--labels-csv {shlex.quote(table)} --split-column {shlex.quote(column)}"
            notes.append(f"{table} has the column {column} of splits, which was not used; {options} takes them from it")
    return tuple(notes)
