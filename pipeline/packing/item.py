"""An image of a SOURCE with its place in a shard, and the names of such places."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import Split
from pipeline.errors import UserError

SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainval", "labeled", "labelled", "extra"), "labeled"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation", "holdout"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("unlabeled", "unlabelled", "unsup", "unsupervised", "pred"), "unlabeled"),
}
"""What folders, files and columns call splits."""
_UNLISTED = {"Cc", "Cs", "Zl", "Zp"}
"""Line breaks, other control characters, and bytes that are not UTF-8, by their categories in Unicode."""
_PLAIN = re.compile(r"[A-Za-z0-9_/ -]+")


@dataclass(frozen=True)
class Item:
    """An image of a SOURCE with its place in a shard."""

    name: str
    key: str
    class_name: str | None
    split: Split | None = None
    """What SOURCE itself says; None if it says nothing."""
    origin: str = ""
    """The word by which it says so, such as the name of a folder."""


@dataclass(frozen=True)
class Told:
    """Images with what their folders, a table or the choice of classes says of them."""

    items: list[Item]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Images that are not to be packed, and rows of a table without an image, with the reason."""
    notes: tuple[str, ...] = ()
    """What is to be told to people, as sentences."""


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


def check_printable(source: Path, classes: Iterable[str | None]) -> None:
    """Refuse a name that no classes file could list."""
    for name in classes:
        if name and _UNLISTED & {unicodedata.category(letter) for letter in name}:
            raise UserError(f"{source}: class {name!r} has an unprintable name; rename it")


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
