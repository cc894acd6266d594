"""Which columns of a table of labels count: those that are named, or that are beyond doubt."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.packing.item import SPLIT_WORDS, normal
from pipeline.packing.tables import ImageNames, Row, Table

_IMAGE_COLUMNS = (
    "image",
    "images",
    "file",
    "filename",
    "file_name",
    "path",
    "filepath",
    "image_path",
    "image_id",
    "id",
)
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed", "y")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that count."""

    image: str
    label: str | None
    """None if there is a column of 0 and 1 per class."""
    split: str | None
    classes: tuple[str, ...] = ()
    """These columns."""

    def label_of(self, row: Row, where: str) -> str | None:
        """The label of a row; None if it has none. Raises UserError for a row of several classes."""
        if self.label is not None:
            return normal(row.values.get(self.label, "")) or None
        ones = [column for column in self.classes if _is_one(row.values.get(column, ""))]
        if len(ones) > 1:
            raise UserError(
                f"{where} is of {len(ones)} classes ({', '.join(ones[:3])}), and an image has one class here; leave "
                "such rows out, or write a column with one label per image"
            )
        return normal(ones[0]) if ones else None


def choose_columns(
    table: Table,
    names: ImageNames,
    again: str,
    *,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
) -> Columns:
    """The columns that are named, or that are beyond doubt.

    Args:
        table: The table.
        names: The images of SOURCE.
        again: The command that was typed, for messages.
        image: The column of images, if it is named.
        label: That of labels.
        split: That of splits, which is not used otherwise.

    Raises:
        UserError: they are in doubt; the message has the columns and a command that names them.
    """
    split = table.column(split, "--split-column") if split else None
    if image is not None:
        image = table.column(image, "--image-column")
    else:
        image = _image_column(table, names, again)
        again = f"{again} --image-column {shlex.quote(image)}"
    if label is not None:
        return Columns(image, table.column(label, "--label-column"), split)
    no_labels = {image, split, split_like(table)}
    others = [column for column in table.columns if column not in no_labels]
    known = [column for column in others if column.lower() in _LABEL_COLUMNS]
    if len(known) == 1 or len(others) == 1:
        return Columns(image, (known or others)[0], split)
    if not known and len(others) > 1 and all(_is_flag(row.values.get(c, "")) for row in table.rows for c in others):
        return Columns(image, None, split, tuple(others))
    if not others:
        raise UserError(f"{table.name} has no column of labels beside {image}; write one")
    kinds = {column: len({row.values.get(column, "") for row in table.rows}) for column in known or others}
    likely = min((column for column in kinds if kinds[column] > 1), key=lambda one: kinds[one], default=others[0])
    raise UserError(
        f"{table.name} has the columns {', '.join(table.columns)}, and it is not clear which has the labels; say it, "
        f"such as\n  {again} --label-column {shlex.quote(likely)}"
    )


def _image_column(table: Table, names: ImageNames, again: str) -> str:
    some = table.rows[:: max(1, len(table.rows) // 1000)]
    hits = {column: len({names.find(row.values.get(column, "")) for row in some} - {()}) for column in table.columns}
    best = [column for column in table.columns if hits[column] == max(hits.values())]
    if hits[best[0]] == 0:
        value = table.rows[0].values.get(table.columns[0], "")
        raise UserError(
            f"no column of {table.name} ({', '.join(table.columns)}) names images of this SOURCE: its first value is "
            f"{value!r}; write the paths of images into one"
        )
    usual = [column for column in best if column.lower() in _IMAGE_COLUMNS]
    if len(best) > 1 and len(usual) != 1:
        raise UserError(
            f"{table.name} has the columns {', '.join(table.columns)}, and {' and '.join(best[:3])} both name images; "
            f"say which, such as\n  {again} --image-column {shlex.quote(best[0])}"
        )
    image = (usual if len(best) > 1 else best)[0]
    if image.lower() not in _IMAGE_COLUMNS and names.find(image):
        raise UserError(f"{table.name} has no names of columns, but an image in its first line; write them above")
    return image


def split_like(table: Table) -> str | None:
    """A column whose values are names of splits."""
    for column in table.columns:
        values = {row.values.get(column, "").lower() for row in table.rows} - {""}
        if values and values <= SPLIT_WORDS.keys() and (len(values) > 1 or column.lower() in ("split", "subset")):
            return column
    return None


def _is_flag(value: str) -> bool:
    return value in ("0", "1", "0.0", "1.0", "True", "False", "")


def _is_one(value: str) -> bool:
    return value in ("1", "1.0", "True")
