"""Every image of a SOURCE with its class and its own split, by folders, table or Parquet; and the choice of classes."""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Split
from pipeline.errors import UserError, did_you_mean
from pipeline.packing.by_table import label_by_table, splits_not_read
from pipeline.packing.columns import split_like
from pipeline.packing.item import Item, Told, check_printable, normal
from pipeline.packing.layout import Command, arrange
from pipeline.packing.own_splits import Asked, take_own_splits
from pipeline.packing.parquet import label_by_parquet
from pipeline.packing.source import Source
from pipeline.packing.tables import find_table


@dataclass(frozen=True, kw_only=True)
class Labeling:
    """Where labels come from, if not from folders, and which of them are classes. The options of `pack`."""

    table: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    drop: tuple[str, ...] = ()
    """Labels that are no classes."""
    keep: tuple[str, ...] = ()
    """The labels that are classes; empty for all."""
    leave_out: bool = False
    """Whether images with other labels are left out, or become unlabeled."""

    def __post_init__(self) -> None:
        if self.drop and self.keep:
            raise UserError("--drop and --keep-classes are two ways to say one thing; give one of them")
        if self.leave_out and not (self.drop or self.keep):
            raise UserError("--leave-out is about the images of --drop or --keep-classes; add one, or leave it out")
        if self.image_column is not None and self.table is None:
            raise UserError(f"--image-column {self.image_column} is a column of a table; name it with --labels-csv")

    def options(self) -> str:
        """What was typed."""
        given = {
            "--labels-csv": self.table,
            "--image-column": self.image_column,
            "--label-column": self.label_column,
            "--split-column": self.split_column,
            "--drop": join_names(self.drop),
            "--keep-classes": join_names(self.keep),
        }
        values = [f" {option} {shlex.quote(value)}" for option, value in given.items() if value]
        return "".join([*values, " --leave-out" * self.leave_out])


def split_names(text: str | None) -> tuple[str, ...]:
    """The names of a list with commas; a name with a comma stands in quotes."""
    if text is None:
        return ()
    names = next(csv.reader([text], skipinitialspace=True), [])
    return tuple(normal(name.strip()) for name in names if name.strip())


def join_names(names: Sequence[str]) -> str:
    """The list that `split_names` reads."""
    return ",".join('"' + name.replace('"', '""') + '"' if set(name) & set(',"') else name for name in names)


NO_CLASSES = frozenset(
    {"not sure", "unsure", "unknown", "unclear", "undefined", "unlabeled", "unlabelled", "skip", "skipped"}
    | {"other", "others", "misc", "miscellaneous", "none", "null", "nan", "n/a", "na", "?"}
)
"""What people write where they have no class to give, in small letters and with spaces for dashes."""
BY_FOLDERS = Labeling()
"""Labels are the names of folders, and all of them are classes."""


def tell_apart(
    source: Source,
    labeling: Labeling,
    *,
    split: Split | None,
    known: Sequence[str],
    command: Command,
    again: str,
    trusted: bool,
) -> Told:
    """Give every image of SOURCE its key and, unless the split is unlabeled, its class and its own split.

    The arguments are those of `arrange`.

    Raises:
        UserError: labels cannot be read, or are none or of one class.
    """
    by_folders = labeling.table is None and source.parquet is None
    columns = {"--label-column": labeling.label_column, "--split-column": labeling.split_column}
    for option, column in columns.items():
        if by_folders and column is not None:
            raise UserError(f"{option} {column} is one of a table; name that with --labels-csv")
    items = arrange(
        source,
        labeled=by_folders and split != "unlabeled",
        known=known,
        command=command,
        again=again,
        trusted=trusted,
        own_splits=split is None,
    )
    if split == "unlabeled":
        return Told(items)
    if labeling.table is not None:
        told = _label_by_table(source, items, labeling, split, known, command, again)
    elif source.parquet is not None:
        numbered = known if trusted else ()
        told = label_by_parquet(
            source.parquet, items, labeling.label_column, numbered, again, split_column=labeling.split_column
        )
    else:
        told = Told(items, notes=splits_not_read(source))
    check_printable(source.path, {item.class_name for item in told.items})
    chosen = choose_classes(told.items, labeling, known)
    classes = {item.class_name for item in chosen.items} - {None}
    if len({*classes, *known}) < 2:
        raise UserError(
            f"{source.path} has labels of {len(classes)} class{'es' * (len(classes) != 1)}"
            f"{''.join(f', `{name}`' for name in classes)}, and a classifier has two or more; look at the options that "
            "choose labels, or take all without labels, with --split unlabeled"
        )
    return Told(chosen.items, {**told.left_out, **chosen.left_out}, (*told.notes, *chosen.notes))


def _label_by_table(
    source: Source,
    items: Sequence[Item],
    labeling: Labeling,
    split: Split | None,
    known: Sequence[str],
    command: Command,
    again: str,
) -> Told:
    table = find_table(source, labeling.table or "")
    told = label_by_table(
        source,
        items,
        table,
        again,
        image=labeling.image_column,
        label=labeling.label_column,
        split=labeling.split_column,
    )
    path = labeling.table if Path(labeling.table or "").is_file() else str(source.path / table.name)
    asked = Asked(
        table=table.name,
        split_column=labeling.split_column,
        unused_column=split_like(table) if labeling.split_column is None else None,
        split=split,
        again=again,
        command=command,
        labeled_by=replace(labeling, table=path, split_column=None).options(),
    )
    return take_own_splits(source, told, asked, {item.class_name for item in told.items if item.class_name} | {*known})


def choose_classes(items: Sequence[Item], labeling: Labeling, known: Sequence[str] = ()) -> Told:
    """Take the labels that are no classes away, and with `leave_out` their images.

    One of several sources may lack some of the labels that are typed for all of them.

    Raises:
        UserError: no name in --drop, or in --keep-classes, is a label or a class that is known.
    """
    notes: list[str] = []
    labels = Counter(item.class_name for item in items if item.class_name is not None)
    for option, names in (("--drop", labeling.drop), ("--keep-classes", labeling.keep)):
        absent = [name for name in names if name not in labels and name not in known]
        notes += [f"{option}: no image has the label `{name}`; {did_you_mean(name, labels)}" for name in absent]
        if names and len(absent) == len(names):
            raise UserError(notes[-1])
    gone = {name for name in labels if name in labeling.drop or (labeling.keep and name not in labeling.keep)}
    doubtful = sorted(
        name
        for name in labels
        if name not in gone and name.casefold().replace("_", " ").replace("-", " ") in NO_CLASSES
    )
    if doubtful and not labeling.keep:
        notes.append(
            f"{', '.join(f'`{name}`' for name in doubtful)} may be no class{'es' * (len(doubtful) > 1)}; with --drop "
            f"{shlex.quote(join_names([*labeling.drop, *doubtful]))}, in another folder, such images are unlabeled"
        )
    if not gone:
        return Told(list(items), notes=tuple(notes))
    count = sum(labels[name] for name in gone)
    fate = "left out" if labeling.leave_out else "unlabeled"
    notes.append(f"{count:,} images of {', '.join(sorted(gone)[:12])} are {fate}")
    if labeling.leave_out:
        left = {item.name: f"label `{item.class_name}` is no class" for item in items if item.class_name in gone}
        return Told([item for item in items if item.name not in left], left, tuple(notes))
    kept = [replace(item, class_name=None) if item.class_name in gone else item for item in items]
    return Told(kept, {}, tuple(notes))
