"""`manifest.json` of a packed folder: class names (the only source of class ids) and the shards of every split."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.config import Section, Split, parse
from pipeline.errors import UserError
from pipeline.files import read_json, write_sealed

MANIFEST = "manifest.json"


class ShardEntry(Section):
    """One tar of a packed folder."""

    name: str = Field(pattern=r"^[a-z]+-[0-9]{6,}$")
    """File name without `.tar`; the truth of an unlabeled shard is `truth/<name>.npy`."""
    split: Split
    num_samples: int
    num_bytes: int
    sha256: str
    truth_sha256: str | None = None
    """The digest of that file; None where there is none, or where an earlier version packed it."""
    moved: tuple[int, ...] = ()
    """Rows of an unlabeled shard that are in another split now, since they were packed again with a label. They stay in
    the tar, and nothing reads them."""

    @property
    def num_used(self) -> int:
        """The samples that count."""
        return self.num_samples - len(self.moved)

    def without(self, rows: Iterable[int]) -> ShardEntry:
        """The shard with more rows moved away."""
        return self.model_copy(update={"moved": tuple(sorted({*self.moved, *rows}))})


class CarveRecord(Section):
    """How one labeled source was carved into splits."""

    source: str
    """File or folder name of the source, without its path."""
    seed: int
    num_labeled: int | Literal["all"]
    proportional: bool = False
    val_fraction: float
    test_fraction: float
    num_samples: dict[Split, int]


class Manifest(Section):
    """Everything that a packed folder says about itself."""

    schema_: Literal[1] = Field(1, alias="schema")
    classes: tuple[str, ...] = ()
    """A class id is an index into this. Empty while only unlabeled images were packed."""
    image_size: tuple[int, int]
    """The most common (height, width) in pixels of the first source."""
    value_range: tuple[float, float] | None = None
    """The values that became black and white, of images of more than 8 bits, or of dark ones; 0 to 65,535 where nothing
    was scaled."""
    shards: tuple[ShardEntry, ...]
    carves: tuple[CarveRecord, ...] = ()

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """The shards of one split, in the order of their numbers."""
        return tuple(entry for entry in self.shards if entry.split == split)


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`. Raises UserError when it is missing, broken or from a newer selftrain."""
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} has no {MANIFEST}; `selftrain pack IMAGES --out {folder}` writes one")
    raw = read_json(path)
    return parse(Manifest, raw, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `folder/manifest.json` atomically."""
    unset = {"value_range"} if manifest.value_range is None else set()
    raw = manifest.model_dump(mode="json", by_alias=True, exclude=unset)
    for one in (*raw["shards"], *raw["carves"]):  # as earlier versions wrote and read it, where that says all
        for key in ("moved", "proportional"):
            if key in one and not one[key]:
                del one[key]
    write_sealed(folder / MANIFEST, raw)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read a text file with one class name per line; line numbers are the class ids.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or names a class twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes file {path} cannot be read: {error}") from error
    lines = [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"classes file {path} is empty; write one class name per line")
    for number, name in enumerate(lines, start=1):
        if not name:
            raise UserError(f"classes file {path}: line {number} is empty; remove it, since line numbers are class ids")
        if name in lines[: number - 1]:
            raise UserError(f"classes file {path}: `{name}` is there twice (again in line {number}); remove one")
    return tuple(lines)
