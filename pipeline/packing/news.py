"""What a packed folder got and nobody was told yet.

Before an intake adds the first image it notes how many there were, and once somebody was told, the note goes away. So a
kill in between loses no word of new images; at worst it is said twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.files import read_json, write_json
from pipeline.shards.manifest import Manifest, read_manifest

NEWS = "untold.json"


def note_before(folder: Path, manifest: Manifest) -> None:
    """Note how many unlabeled images there are, unless an earlier count still waits to be told. Under the lock."""
    if not (folder / NEWS).exists():
        write_json(folder / NEWS, {"unlabeled": _count(manifest)})


def has_news(folder: Path) -> bool:
    """Whether there may be images of which nobody was told."""
    return (folder / NEWS).exists()


def tell(folder: Path, announce: Callable[[int], None]) -> None:
    """Call `announce` with the number of new images, if there are any; if it raises, they remain untold. Under the
    lock."""
    if not has_news(folder):
        return
    if (number := _count(read_manifest(folder)) - int(read_json(folder / NEWS)["unlabeled"])) > 0:
        announce(number)
    (folder / NEWS).unlink()


def _count(manifest: Manifest) -> int:
    return sum(entry.num_samples for entry in manifest.of_split("unlabeled"))
