"""Which class, which split and which key each image of a SOURCE has, by the folders that it lies in."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.packing.by_table import advice_for_table, has_other_labels
from pipeline.packing.item import Item, check_printable, normal, sample_key
from pipeline.packing.source import Source
from pipeline.packing.split_folders import Place, places_by_folders, splits_among
from pipeline.packing.tables import TABLES

Command = Callable[[Path, Split], str]
"""The command that does with a folder, as images of a split, what the user wants to do with SOURCE."""


def arrange(
    source: Source,
    *,
    labeled: bool,
    known: Sequence[str],
    command: Command,
    again: str = "",
    trusted: bool = False,
    own_splits: bool = False,
) -> list[Item]:
    """Give every image its key and, when `labeled`, its class: the first folder below the class root.

    The class root is SOURCE, or the folder below it that holds everything (as in a tar of `train/CLASS/x.jpg`).
    `known` class names are never taken for such a folder. Returned in the order of the keys. Names are equal if their
    normal forms (NFC) are: a Mac writes é as two characters.

    Args:
        source: The opened SOURCE.
        labeled: Whether images have classes.
        known: Names of classes that exist already.
        command: Writes the commands that error messages propose.
        again: The command that was typed; empty if it was another verb's.
        trusted: Whether the user has named the classes, so that folders called like splits are classes.
        own_splits: Whether folders that are splits beyond doubt are taken for them.

    Raises:
        UserError: two images with one key, an image outside the class folders, folders that look like splits, or one
            class alone.
    """
    paths = [normal(name).split("/") for name in source.names]
    as_known = {normal(name): name for name in known}
    depth = 0
    while all(len(p) > depth + 1 + labeled for p in paths) and len({p[depth] for p in paths}) == 1:
        if paths[0][depth] in as_known:
            break
        depth += 1
    if not labeled:
        places = [Place(None, "", None)] * len(paths)
    else:
        _refuse_shard(source)
        _refuse_flat(source, paths, depth, set(as_known), command, again)
        found = places_by_folders(paths, depth, set(as_known)) if own_splits and not trusted else None
        if found is None and not trusted:
            _refuse_splits(source, paths, depth, set(as_known), command, again)
        places = found or [Place(None, "", parts[depth]) for parts in paths]
    items: dict[str, Item] = {}
    for name, parts, place in zip(source.names, paths, places, strict=True):
        key = sample_key("/".join(parts[depth:]))
        if key in items:
            raise UserError(f"{source.path}: {items[key].name} and {name} would share the key `{key}`; rename one")
        class_name = None if place.class_name is None else as_known.get(place.class_name, place.class_name)
        items[key] = Item(name, key, class_name, place.split, place.origin)
    check_printable(source.path, {item.class_name for item in items.values()})
    return [items[key] for key in sorted(items)]


# -------------------------------------------------------------------------------------------- layouts that are refused


def _refuse_shard(source: Source) -> None:
    if ".cls" in source.ignored.values():
        raise UserError(
            f"{source.path} holds .cls files, so it is a shard already; name it in the config, e.g. data.labeled, with "
            "its classes in data.classes"
        )


def _refuse_flat(
    source: Source, paths: Sequence[Sequence[str]], depth: int, known: set[str], command: Command, again: str
) -> None:
    """Refuse images in no class folder, and those of a single one, which may be any folder."""
    flat = next((name for name, parts in zip(source.names, paths, strict=True) if len(parts) < depth + 2), None)
    folders = {parts[depth] for parts in paths}
    tables = [name for name, kind in source.ignored.items() if kind in TABLES]
    if flat is None and (len(folders) > 1 or known):
        folder_of = {name: parts[depth] for name, parts in zip(source.names, paths, strict=True)}
        if other := next((table for table in tables if has_other_labels(source, table, folder_of)), None):
            raise UserError(
                f"{source.path} holds {other}, whose rows have other labels than the folders "
                f"({', '.join(sorted(folders)[:4])}); {advice_for_table(source, other, again)}"
            )
        return
    why = f"{source.path} holds images of one class alone, `{paths[0][depth]}`, and a classifier has two or more"
    fix = "give the folder that holds a folder per class"
    if flat is not None:
        why = f"{source.path}: {flat} is in no class folder"
        fix = f"move it to CLASS/{PurePosixPath(flat).name}"
    if tables:
        raise UserError(f"{why}; {advice_for_table(source, tables[0], again)}")
    raise UserError(f"{why}; {fix}, or take all without labels:\n  {command(source.path, 'unlabeled')}")


def _refuse_splits(
    source: Source, paths: Sequence[Sequence[str]], depth: int, known: set[str], command: Command, again: str
) -> None:
    clear = " (without --split they are taken for what they are called)"
    clear = clear if again and places_by_folders(paths, depth, known) else ""
    folders = {parts[depth] for parts in paths}
    nested = {parts[depth] for parts in paths if len(parts) > depth + 2}
    if found := splits_among(folders - known, nested):
        root = source.path.joinpath(*paths[0][:depth])
        raise UserError(
            f"{source.path} holds {', '.join(sorted(found))}, which look like splits and not classes{clear}; pack "
            "each by itself, or name them in --classes if they are classes:\n"
            f"{_split_commands(root, found, folders, _without_labels(paths, depth, found, known), command)}"
        )
    below = {parts[depth + 1] for parts in paths if len(parts) > depth + 2}
    if len(set((found := splits_among(below, set())).values())) > 1:
        raise UserError(
            f"{source.path} holds {', '.join(sorted(found))} inside its class folders, such as "
            f"{paths[0][depth]}/{next(iter(found))}{clear}, so its splits would become one; move them to "
            "SPLIT/CLASS and pack each with --split, or name the classes in --classes if these are no splits"
        )
    if repeated := _repeated(paths, depth):
        one = source.path.joinpath(*paths[0][:depth], min(folders))
        raise UserError(
            f"{source.path} holds {', '.join(sorted(folders)[:4])}, which hold the same folders "
            f"({', '.join(sorted(repeated)[:4])}): if these are the classes, give one of the others alone, such as\n"
            f"  {command(one, 'labeled')}\nIf not, name the classes in --classes"
        )


def _repeated(paths: Sequence[Sequence[str]], depth: int) -> set[str]:
    """The folders that every folder at this depth holds, if they hold no others: folds, cameras or kinds of one set."""
    inside: dict[str, set[str]] = {}
    for parts in paths:
        inside.setdefault(parts[depth], set()).add(parts[depth + 1] if len(parts) > depth + 2 else "")
    first = next(iter(inside.values()))
    return first if len(inside) > 1 and len(first) > 1 and all(one == first for one in inside.values()) else set()


def _without_labels(paths: Sequence[Sequence[str]], depth: int, found: dict[str, Split], known: set[str]) -> set[str]:
    """The split folders with images in no class folder, or in folders that no train folder has, as in test/unknown."""
    inside: dict[str, set[str]] = {folder: set() for folder in found}
    for parts in paths:
        if parts[depth] in found:
            inside[parts[depth]].add(parts[depth + 1] if len(parts) > depth + 2 else "")
    train = [inside[folder] for folder, split in found.items() if split == "labeled"]
    classes = set().union(known, *train) - {""}
    return {folder for folder, names in inside.items() if "" in names or (train and not names <= classes)}


def _split_commands(root: Path, found: dict[str, Split], folders: set[str], bare: set[str], command: Command) -> str:
    if not root.is_dir():
        return f"  extract {root}, then pack each folder"
    classes = folders - found.keys()
    lines = []
    for folder, called in sorted(found.items()):
        split = "unlabeled" if folder in bare else called
        if split == "unlabeled" and classes:  # the classes beside it are then a folder of classes
            aside = root.with_name(f"{root.name}-{folder}")
            lines.append(f"mv {shlex.quote(str(root / folder))} {shlex.quote(str(aside))}")
            lines += [command(root, "labeled"), command(aside, "unlabeled")]
        else:
            lines.append(command(root / folder, split))
    return "\n".join(f"  {line}" for line in lines)
