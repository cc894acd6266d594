"""The champion of a registry: the version that a folder `champions/NAME/` stands for, wherever a command takes a model.

`pipeline/champions` writes such a folder. Here it is only read, because every verb reads models and few promote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.files import check_shape, read_as, read_lines
from pipeline.stages.fingerprint import digest_once

FILE, HISTORY = "champion.json", "history.jsonl"


class Standing(TypedDict):
    """What is needed of champion.json to find the champion."""

    version: int
    model: str
    """The digest of all that its predictions depend on."""
    digests: dict[str, str]
    """Name of a file of the version -> the sha256 of its bytes."""
    source: str
    """The path that was promoted."""


def weights_of(registry: Path, version: int) -> Path:
    """The weights of a version, beside which its JSON lies. No file of a version is ever written twice."""
    return registry / f"v{version}.safetensors"


def is_registry(path: Path) -> bool:
    """Whether a path is a registry, which has had a champion."""
    return (path / FILE).exists()


def champion_of(path: Path) -> Path | None:
    """The weights of the version that is champion now; None if the path is no registry.

    Raises:
        UserError: the registry is damaged, or somebody changed a file of the champion.
    """
    if not is_registry(path):
        return None
    champion = read_as(Standing, path / FILE)
    if (fault := fault_of(path, champion["digests"])) is not None:
        raise UserError(
            f"{fault}; restore it, promote another model, or take the champion before it: "
            f"selftrain promote --to {path} --rollback"
        )
    return weights_of(path, champion["version"])


def fault_of(registry: Path, digests: Mapping[str, str]) -> str | None:
    """What is wrong with the files of a version; None if they are as they were promoted."""
    for file, sha256 in ((registry / name, sha256) for name, sha256 in digests.items()):
        if not file.exists():
            return f"{file} is gone"
        if digest_once(file) != sha256:
            return f"{file} was changed: its bytes are not those that were promoted"
    return None


def pinned(path: Path) -> Path:
    """A registry as the version that is champion now, and every other path as it is.

    Who reads a model in several steps or processes pins it first, so that a promotion between two of them changes
    nothing. Raises UserError as `champion_of` does.
    """
    return champion_of(path) or path


def origin_of(weights: Path) -> Path:
    """The path that a version of a registry was promoted from, through all registries; any other path is its own.

    Raises:
        UserError: a registry on the way is damaged.
    """
    for change in _changes(weights.parent):
        if weights_of(weights.parent, change["version"]) == weights:
            return _origin(Path(change["source"]), change["model"])
    return weights


def _origin(source: Path, model: str) -> Path:
    """Where a model comes from that was promoted from a path. A registry there may have another champion by now."""
    changes = _changes(source) or _changes(source.parent)
    return next((_origin(Path(change["source"]), model) for change in changes if change["model"] == model), source)


def _changes(registry: Path) -> list[Standing]:
    """The changes of a registry, the earliest first; none of any other folder. The last may be there twice."""
    if not is_registry(registry):
        return []
    lines = read_lines(registry / HISTORY)
    for line in lines:
        check_shape(Standing, line, registry / HISTORY)
    return [*lines, read_as(Standing, registry / FILE)]
