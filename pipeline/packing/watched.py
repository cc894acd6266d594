"""What was taken from a watched folder: `intake.csv` has a line per file that was read, `quarantine.csv` the bad ones.

A file is known by its path, size and time of change, and is read again when one of them is another. Lines of files that
are gone are left out, so the lists grow no longer than the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UserError
from pipeline.files import as_utf8
from pipeline.packing.left_out import INTAKE, QUARANTINE, read_rows, replace_rows
from pipeline.packing.source import is_litter, walk_folder

BAD = "bad: "


class Stamp(NamedTuple):
    """By what a file is known."""

    size: int
    changed_ns: int
    """The time of its last change on this disk (ctime), which every write moves on. The time of modification will not
    do: a copy may keep that of the original, and a camera may be years ahead."""


class Known(NamedTuple):
    """A file that was read, and what became of it."""

    stamp: Stamp
    became: str


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None if it is gone, or a link that leads nowhere."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; fix its permissions, or move it away") from error
    return Stamp(status.st_size, status.st_ctime_ns)


def list_files(source: Path) -> dict[str, Stamp]:
    """The files of a watched folder and of its subfolders, but for hidden ones.

    Raises:
        UserError: it is no folder, or cannot be listed.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder; name the folder that images arrive in")
    names, _ = walk_folder(source)
    stamps = {name: stamp_of(source / name) for name in sorted(names) if not is_litter(name)}
    return {name: stamp for name, stamp in stamps.items() if stamp is not None}


def read_known(folder: Path, source: Path) -> dict[str, Known]:
    """The files of a source that were read earlier. Of a damaged line nothing is known: its file is read again."""
    known = {}
    for name, size, changed_ns, became in read_rows(folder / INTAKE, source):
        if size.isdecimal() and changed_ns.isdecimal():
            known[name] = Known(Stamp(int(size), int(changed_ns)), became)
    return known


def write_known(folder: Path, source: Path, known: Mapping[str, Known]) -> None:
    """Replace the lines of a source in both lists."""
    bad = {name: one.became.removeprefix(BAD) for name, one in known.items() if one.became.startswith(BAD)}
    replace_rows(folder / QUARANTINE, source, sorted(bad.items()))
    rows = [(name, str(one.stamp.size), str(one.stamp.changed_ns), one.became) for name, one in known.items()]
    replace_rows(folder / INTAKE, source, sorted(rows))


def is_known(name: str, stamp: Stamp, known: Mapping[str, Known]) -> bool:
    """Whether a file was read as it is now."""
    return (earlier := known.get(as_utf8(name))) is not None and earlier.stamp == stamp
