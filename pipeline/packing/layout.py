"""Which class, which split and which key each image of a SOURCE has, by the folders that it lies in."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config import Split
from pipeline.errors import UserError
from pipeline.packing.source import Source
from pipeline.packing.tables import TABLES, Command, advice_for_table, has_other_labels

_UNLISTED = {"Cc", "Cs", "Zl", "Zp"}
"""Line breaks, other control characters, and bytes that are not UTF-8, by their categories in Unicode."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_PLAIN = re.compile(r"[A-Za-z0-9_/ -]+")
_SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainval", "labeled", "labelled", "extra"), "labeled"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised"), "unlabeled"),
}
_ALSO_CLASSES = {"train", "extra", "dev"}
"""Words that may be classes (a train is a vehicle), unless other folders beside them or below them tell otherwise."""


@dataclass(frozen=True)
class Item:
    """An image of a SOURCE with its place in a shard."""

    name: str
    key: str
    class_name: str | None


def arrange(
    source: Source, *, labeled: bool, known: Sequence[str], command: Command, trusted: bool = False
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
        trusted: Whether the user has named the classes, so that folders called like splits are classes.

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
    if labeled:
        _refuse_shard(source)
        _refuse_flat(source, paths, depth, set(as_known), command)
        if not trusted:
            _refuse_splits(source, paths, depth, set(as_known), command)
    items: dict[str, Item] = {}
    for name, parts in zip(source.names, paths, strict=True):
        inside = parts[depth:]
        key = sample_key("/".join(inside))
        if key in items:
            raise UserError(f"{source.path}: {items[key].name} and {name} would share the key `{key}`; rename one")
        items[key] = Item(name, key, as_known.get(inside[0], inside[0]) if labeled else None)
    for folder in {item.class_name for item in items.values() if item.class_name}:
        if _UNLISTED & {unicodedata.category(letter) for letter in folder}:  # no classes file could list it
            raise UserError(f"{source.path}: class folder {folder!r} has an unprintable name; rename it")
    return [items[key] for key in sorted(items)]


def sample_key(path: str) -> str:
    """The key of an image: its path without extension; dots, percent signs and odd bytes become %XX (reversible)."""
    stem = os.path.splitext(path)[0]
    if _PLAIN.fullmatch(stem):
        return stem
    return "".join(
        c if c.isprintable() and c not in "%." else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape"))
        for c in stem
    )


def normal(name: str) -> str:
    """The form in which names are compared and stored."""
    return unicodedata.normalize("NFC", name)


def look_alikes(classes: Iterable[str]) -> tuple[str, ...]:
    """Pairs of classes that differ in case or white space alone, for people to look at."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classes:
        plain = "".join(name.split()).casefold()
        if plain in seen:
            pairs.append(f"`{seen[plain]}` and `{name}`")
        seen.setdefault(plain, name)
    return tuple(pairs)


# -------------------------------------------------------------------------------------------- layouts that are refused


def _refuse_shard(source: Source) -> None:
    if ".cls" in source.ignored.values():
        raise UserError(
            f"{source.path} holds .cls files, so it is a shard already; name it in the config, e.g. data.labeled, with "
            "its classes in data.classes"
        )


def _refuse_flat(source: Source, paths: Sequence[Sequence[str]], depth: int, known: set[str], command: Command) -> None:
    """Refuse images in no class folder, and those of a single one, which may be any folder."""
    flat = next((name for name, parts in zip(source.names, paths, strict=True) if len(parts) < depth + 2), None)
    folders = {parts[depth] for parts in paths}
    tables = [name for name, kind in source.ignored.items() if kind in TABLES]
    if flat is None and (len(folders) > 1 or known):
        if other := next((table for table in tables if has_other_labels(source, table, paths, depth)), None):
            raise UserError(
                f"{source.path} holds {other}, whose rows have other labels than the folders "
                f"({', '.join(sorted(folders)[:4])}); {advice_for_table(source, other, command)}"
            )
        return
    why = f"{source.path} holds images of one class alone, `{paths[0][depth]}`, and a classifier has two or more"
    fix = "give the folder that holds a folder per class"
    if flat is not None:
        why = f"{source.path}: {flat} is in no class folder"
        fix = f"move it to CLASS/{PurePosixPath(flat).name}"
    if tables:
        raise UserError(f"{why}; {advice_for_table(source, tables[0], command)}")
    raise UserError(f"{why}; {fix}, or take all without labels:\n  {command(source.path, 'unlabeled')}")


def _refuse_splits(
    source: Source, paths: Sequence[Sequence[str]], depth: int, known: set[str], command: Command
) -> None:
    folders = {parts[depth] for parts in paths}
    nested = {parts[depth] for parts in paths if len(parts) > depth + 2}
    if found := _splits_among(folders - known, nested):
        root = source.path.joinpath(*paths[0][:depth])
        raise UserError(
            f"{source.path} holds {', '.join(sorted(found))}, which look like splits and not classes; pack each by "
            f"itself, or name them in --classes if they are classes:\n{_split_commands(root, found, folders, command)}"
        )
    below = {parts[depth + 1] for parts in paths if len(parts) > depth + 2}
    if len(set((found := _splits_among(below, set())).values())) > 1:
        raise UserError(
            f"{source.path} holds {', '.join(sorted(found))} inside its class folders, such as "
            f"{paths[0][depth]}/{next(iter(found))}, so its splits would become one; move them to SPLIT/CLASS and pack "
            "each with --split, or name the classes in --classes if these are no splits"
        )
    if repeated := _repeated(paths, depth):
        one = source.path.joinpath(*paths[0][:depth], min(folders))
        raise UserError(
            f"{source.path} holds {', '.join(sorted(folders)[:4])}, which hold the same folders "
            f"({', '.join(sorted(repeated)[:4])}): if these are the classes, give one of the others alone, such as\n"
            f"  {command(one, 'labeled')}\nIf not, name the classes in --classes"
        )


def _splits_among(folders: set[str], nested: set[str]) -> dict[str, Split]:
    """The folders that are called like splits, such as `test`, `train2017`, or `seg_train` beside `seg_test`."""
    named: dict[str, tuple[Split, tuple[str, ...]]] = {}
    for folder in folders:
        words = [word.lower().removesuffix("set") or word for word in _WORD.findall(folder)]
        splits = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
        if len(splits) == 1:
            named[folder] = splits[0], tuple(word for word in words if word not in _SPLIT_WORDS)
    several = {
        rest for _, rest in named.values() if len({split for split, other in named.values() if other == rest}) > 1
    }
    alone = {
        folder
        for folder, (_, rest) in named.items()
        if not rest and (folder.lower() not in _ALSO_CLASSES or folder in nested)
    }
    return {folder: split for folder, (split, _) in named.items()} if several or alone else {}


def _repeated(paths: Sequence[Sequence[str]], depth: int) -> set[str]:
    """The folders that every folder at this depth holds, if they hold no others: folds, cameras or kinds of one set."""
    inside: dict[str, set[str]] = {}
    for parts in paths:
        inside.setdefault(parts[depth], set()).add(parts[depth + 1] if len(parts) > depth + 2 else "")
    first = next(iter(inside.values()))
    return first if len(inside) > 1 and len(first) > 1 and all(one == first for one in inside.values()) else set()


def _split_commands(root: Path, found: dict[str, Split], folders: set[str], command: Command) -> str:
    if not root.is_dir():
        return f"  extract {root}, then pack each folder"
    classes = folders - found.keys()
    lines = []
    for folder, split in sorted(found.items()):
        if split == "unlabeled" and classes:  # the classes beside it are then a folder of classes
            aside = root.with_name(f"{root.name}-{folder}")
            lines.append(f"mv {shlex.quote(str(root / folder))} {shlex.quote(str(aside))}")
            lines += [command(root, "labeled"), command(aside, "unlabeled")]
        else:
            lines.append(command(root / folder, split))
    return "\n".join(f"  {line}" for line in lines)
