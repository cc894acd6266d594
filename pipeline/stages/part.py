"""Parts of a stage: processes that know nothing of each other fill one stage folder together.

A part is the same stage in a folder of its own below the stage's, `parts/3-of-8`, which it never finishes. So whatever
a part writes is its own: its lock, its log, its temporary files. Whoever fills the stage folder takes over the files
that parts have made. Nothing is agreed between them, hence they may be on any machines that share a file system, begin
in any order, and end in any way: at worst a file is made twice, with the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.errors import UserError

T = TypeVar("T")
PARTS = "parts"


class Part(NamedTuple):
    """Part `number`, from 1 on, `of` so many."""

    number: int
    of: int

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this part does of the whole. The shares of all parts are disjoint, and together they are the whole."""
        return items[self.number - 1 :: self.of]

    def folder(self, whole: Path) -> Path:
        """The folder of this part of the stage in folder `whole`."""
        return whole / PARTS / f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_part(text: str) -> Part:
    """The part that `3/8` means. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if not 1 <= part.number <= part.of:
        raise UserError(f"--part {text!r} is no part; write K/N, from 1/N to N/N, such as 3/8")
    return part


def parts_of(whole: Path) -> list[Path]:
    """The folders of all parts that were begun of a stage, however many they are parts of."""
    return sorted((whole / PARTS).glob("*-of-*"))
