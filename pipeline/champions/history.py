"""The folder of a registry: `champion.json` says who is champion, `history.jsonl` who was, and `vN.safetensors` with
`vN.json` are the models.

A change is one rename, that of champion.json: whoever reads in the middle of it sees the old champion or the new one.
The models lie there before it. Its entry joins the history after it, and if a kill came between, when the next change
begins. Each entry has the digest of all lines before its own, so that a changed history is found.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.files import check_shape, parse_line, read_as, write_bytes, write_sealed
from pipeline.models.champion import FILE, HISTORY, fault_of, is_registry

SCHEMA = 1
_OWN = re.compile(rf"run\.lock|{re.escape(FILE)}|{re.escape(HISTORY)}|v\d+\.(safetensors|json)|\..*")


class Signature(TypedDict):
    """Who changed the champion, when, and why."""

    number: int
    """The place of the change in the history, from 1 on."""
    time: str
    who: str
    reason: str
    before: str
    """The sha256 of the lines of the history before this one."""


class Entry(Signature):
    """A change of the champion: a line of history.jsonl, of which champion.json has the last one."""

    schema: int
    action: Literal["promote", "rollback"]
    version: int
    """The champion from now on: vN.safetensors and vN.json."""
    model: str
    """The digest of all that its predictions depend on."""
    digests: dict[str, str]
    """Name of a file of the version -> the sha256 of its bytes."""
    source: str
    """The path that was promoted."""
    figures: dict[str, Any]
    """What was measured on it, by split."""
    lineage: dict[str, Any]
    """What it was made from."""
    comparison: dict[str, Any] | None
    """The paired test against the champion before, if it was asked for."""


def read_history(registry: Path) -> list[Entry]:
    """All changes of the champion, the earliest first; none if the folder is new.

    Raises:
        UserError: the folder holds other files and no registry, or its history or champion.json was changed by hand.
    """
    return _read(registry)[0]


def _read(registry: Path) -> tuple[list[Entry], bytes]:
    """The changes, and the bytes of history.jsonl, in which the last one may be missing."""
    check_folder(registry)
    path = registry / HISTORY
    lines = path.read_bytes() if path.exists() else b""
    entries = _parse(lines, path)
    # After the lines: a promotion between the two is then one that the lines lack.
    champion: Entry | None = read_as(Entry, registry / FILE) if is_registry(registry) else None
    if champion is None:
        if lines:
            raise _edited(registry, f"{registry / FILE} is gone")
    elif not entries or entries[-1] != champion:
        if champion["before"] != _sha256(lines):
            raise _edited(registry, f"{registry / FILE} is not the last line of {path}")
        entries.append(champion)  # a kill came before its line, or it is not written yet
    return entries, lines


def _parse(lines: bytes, path: Path) -> list[Entry]:
    *found, rest = lines.split(b"\n")
    entries: list[Entry] = []
    read = hashlib.sha256()
    for number, line in enumerate(found, start=1):
        value = parse_line(line)
        if value is None or value.get("before") != read.hexdigest():
            raise _edited(path.parent, f"{path} is not what was written: line {number} does not follow those before it")
        check_shape(Entry, value, path)
        entries.append(value)  # type: ignore[arg-type]  # its shape is checked
        read.update(line + b"\n")
    if rest:
        raise _edited(path.parent, f"{path} is not what was written: its last line has no end")
    return entries


def _edited(registry: Path, what: str) -> UserError:
    return UserError(
        f"{what}; restore it, or begin another registry with the model that is to be champion: "
        f"selftrain promote {registry}/vN.safetensors --to {registry}-2"
    )


def check_folder(registry: Path) -> None:
    """Refuse a folder with the user's files. Raises UserError if it has others than those of a registry."""
    if registry.exists() and not registry.is_dir():
        raise UserError(f"--to {registry} is a file, and a registry is a folder; choose another name")
    names = sorted(path.name for path in registry.iterdir()) if registry.exists() and not is_registry(registry) else []
    if others := [name for name in names if not _OWN.fullmatch(name)]:
        raise UserError(f"--to {registry} has files, such as {others[0]}, but is no registry; choose another folder")


def settle(registry: Path) -> list[Entry]:
    """The history, whose last line is written if a kill came before it. The caller holds the lock.

    Raises:
        UserError: as `read_history` does.
    """
    entries, lines = _read(registry)
    if len(entries) > lines.count(b"\n"):
        _append(registry, lines, entries[-1])
    return entries


def write_entry(registry: Path, entry: Entry) -> None:
    """Make the version of an entry champion; its files are there already. The caller holds the lock."""
    path = registry / HISTORY
    lines = path.read_bytes() if path.exists() else b""
    entry["before"] = _sha256(lines)
    write_sealed(registry / FILE, dict(entry))
    _append(registry, lines, entry)


def _append(registry: Path, lines: bytes, entry: Entry) -> None:
    # Written as a whole, so that no kill leaves half a line; a history of thousands of lines is a few megabytes.
    write_bytes(registry / HISTORY, lines + json.dumps(entry, allow_nan=False).encode() + b"\n")


def _sha256(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


def succession(history: Sequence[Entry]) -> list[Entry]:
    """The promotions that count, the earliest first: the last one is the champion's, and a rollback takes it away."""
    standing: list[Entry] = []
    for entry in history:
        if entry["action"] == "rollback":
            standing.pop()
        else:
            standing.append(entry)
    return standing


def faults_of(registry: Path) -> list[str]:
    """What somebody changed in a registry that has a champion: its history, champion.json, or the files of a version.

    An earlier version may be deleted, after which no rollback leads to it.
    """
    try:
        history = read_history(registry)
    except UserError as error:
        return [str(error)]
    champion, faults = history[-1]["version"], []
    for version, digests in {entry["version"]: entry["digests"] for entry in history}.items():
        must_be = digests if version == champion else {n: d for n, d in digests.items() if (registry / n).exists()}
        faults.append(fault_of(registry, must_be))
    return [fault for fault in faults if fault is not None]
