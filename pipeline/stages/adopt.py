"""Files that are a function of their provenance alone: they are taken over from other stages instead of made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import atomic_file


def adopt(path: Path, folders: Iterable[Path], check: Callable[[Path], object]) -> bool:
    """Take over the file of this name from one of the folders, as a link, or as a copy where there are no links.

    Args:
        path: The file that is wanted, in the folder of the stage under way.
        folders: Folders of other stages of the kind.
        check: Raises UserError for a file of another provenance.

    Returns:
        Whether the file is there now.
    """
    for other in sorted(folders):
        candidate = other / path.name
        if other == path.parent.absolute() or not candidate.exists():
            continue
        try:
            check(candidate)
        except UserError:  # of another teacher or encoder, or of another shard with that name
            continue
        try:
            os.link(candidate, path)
        except OSError:  # not every file system has links
            with atomic_file(path) as file, open(candidate, "rb") as source:
                shutil.copyfileobj(source, file)
        return True
    return False
