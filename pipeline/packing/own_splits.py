"""The splits that the folders of a SOURCE say where its labels are told otherwise: taken where they are clear."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.packing.item import Item, Told, normal
from pipeline.packing.layout import Command
from pipeline.packing.source import Source
from pipeline.packing.split_folders import splits_by_folders

Said = dict[str, Split]
"""What says something of an image's split, such as the path of a folder that it lies in -> that split."""


@dataclass(frozen=True)
class Asked:
    """What was typed, as far as it is about splits, and how to type it again."""

    table: str
    """The table of labels, as a message calls it."""
    split_column: str | None
    """The column whose splits images have already."""
    unused_column: str | None
    """A column that looks like one of splits, and was not named."""
    split: Split | None
    """The split that was typed for all images."""
    again: str
    """The command that was typed."""
    command: Command
    """Writes the command that packs a folder as a split."""
    labeled_by: str
    """The options that read the same labels for a folder of SOURCE."""


def take_own_splits(source: Source, told: Told, asked: Asked, classes: set[str]) -> Told:
    """Give images the splits that the folders say, or the names of Parquet files, beside what a column says.

    What lies in no such folder has no split of its own, which is clear only where no folder is of val or test.
    `classes` are names of classes, which are no splits.

    Raises:
        UserError: a column says otherwise than the folders, the folders are not clear, or a split was typed for images
            of several.
    """
    said = _said(source, told.items, classes)
    apart = {frozenset(one.values()) for one in said}
    splits = set().union(*apart)
    if splits <= {"labeled"}:
        return told
    for item, folders in zip(told.items, said, strict=True):
        if item.split and folders and item.split not in folders.values():
            raise UserError(
                f"--split-column {asked.split_column}: {asked.table} has the split {item.origin!r} for {item.name}, "
                f"which lies in {min(folders)}; correct one of them, or leave --split-column {asked.split_column} out "
                "to take the splits of the folders"
            )
    if asked.split is not None and asked.split_column is None and len(apart) > 1:
        raise UserError(
            f"{source.path} holds {_names(said)}, which look like splits (without --split they are taken for what they "
            f"are called); leave --split {asked.split} out, or pack each folder by itself"
            f"{_commands(source, told, said, asked)}"
        )
    open_part = asked.split_column is not None or splits <= {"labeled", "unlabeled"}
    for item, folders in zip(told.items, said, strict=True):
        if item.split is None and len(set(folders.values())) > 1:
            _refuse(source, told, said, asked, f"{item.name} lies in several of them")
        if item.split is None and not folders and not open_part:
            _refuse(source, told, said, asked, f"{item.name} lies in none of them")
    items = [_with_split(item, folders) for item, folders in zip(told.items, said, strict=True)]
    unused = sum(
        old.class_name is not None and new.class_name is None for old, new in zip(told.items, items, strict=True)
    )
    note = f"{unused:,} images have a label in {asked.table} that is not used: they lie in a folder of unlabeled ones"
    return replace(told, items=items, notes=(*told.notes, *[note] * bool(unused)))


def _said(source: Source, items: Sequence[Item], classes: set[str]) -> list[Said]:
    if source.parquet is not None:
        words = dict(zip(source.parquet.names(), source.parquet.splits(), strict=True))
        return [{word: split} if split else {} for split, word in (words[item.name] for item in items)]
    return splits_by_folders([normal(item.name).split("/") for item in items], classes)


def _with_split(item: Item, folders: Said) -> Item:
    if item.split is not None or not folders:
        return item
    folder, split = next(iter(folders.items()))
    class_name = None if split == "unlabeled" else item.class_name
    return replace(item, split=split, origin=PurePosixPath(folder).name, class_name=class_name)


def _refuse(source: Source, told: Told, said: Sequence[Said], asked: Asked, why: str) -> None:
    what = f"{source.path} holds {_names(said)}, which look like splits, and {why}"
    if column := asked.unused_column:
        named = shlex.quote(column)
        raise UserError(f"{what}; take the splits of a column instead:\n  {asked.again} --split-column {named}")
    raise UserError(
        f"{what}; write the split of each image into a column of {asked.table} and name it with --split-column, or "
        f"pack each folder by itself, which leaves all others out{_commands(source, told, said, asked)}"
    )


def _names(said: Sequence[Said]) -> str:
    return ", ".join(sorted({PurePosixPath(folder).name for one in said for folder in one})[:6])


def _commands(source: Source, told: Told, said: Sequence[Said], asked: Asked) -> str:
    """A command for each folder that is a split; empty if no such commands would do.

    In a folder alone, a row of the table may mean an image of the same name that lies in another one, so all names
    must differ.
    """
    names = [PurePosixPath(item.name).stem.casefold() for item in told.items]
    if not source.path.is_dir() or source.parquet is not None or len(set(names)) < len(names):
        return ""
    if any(len(one) > 1 for one in said):
        return ""
    labeled = {
        folder
        for item, one in zip(told.items, said, strict=True)
        for folder in one
        if item.class_name is not None and one[folder] != "unlabeled"
    }
    folders = sorted({pair for one in said for pair in one.items()}, key=lambda pair: (pair[1] != "labeled", pair))
    lines = [
        f"\n  {asked.command(source.path / folder, split)}{asked.labeled_by}"
        if folder in labeled
        else f"\n  {asked.command(source.path / folder, 'unlabeled')}"
        for folder, split in folders
    ]
    return f":{''.join(lines)}"
