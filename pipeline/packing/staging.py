"""How a pack appears whole or not at all.

Everything is written into the hidden folder `.packing` of the packed folder. Its manifest.json, written last, is the
commit point; then the files are moved out, the manifest last again. What a kill leaves before the commit point is
cleared away by the next pack, and what it leaves after it is completed by the next pack.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import fsync
from pipeline.shards.manifest import MANIFEST

STAGING = ".packing"
MARK = "selftrain"
"""An empty file that tells our folder from one of the user's that has the same name."""


def recover(folder: Path) -> bool:
    """Complete or clear away a pack that was killed. Returns whether there was one. The caller holds the lock.

    Raises:
        UserError: what is there is not of a pack, or a link to what others may have made.
    """
    staging = folder / STAGING
    if not staging.exists() and not staging.is_symlink():
        return False
    is_folder = staging.is_dir() and not staging.is_symlink()
    if not is_folder or (any(staging.iterdir()) and not (staging / MARK).exists()):
        raise UserError(
            f"{staging} is not of a pack; rename it, choose another --out, or delete it if an older version of "
            "selftrain was killed while it packed"
        )
    if (staging / MANIFEST).exists():
        _install(staging, folder)
    else:
        shutil.rmtree(staging)
    return True


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which ends with its manifest; its files then appear in `folder`.

    If the block fails, `folder` is what it was.

    Raises:
        UserError: `folder` cannot be written, or holds a file of the same name that no manifest lists.
    """
    staging = folder / STAGING
    try:
        staging.mkdir()
        (staging / MARK).touch()
        yield staging
        _install(staging, folder)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; free space or fix permissions") from error
    finally:
        if not (staging / MANIFEST).exists():
            shutil.rmtree(staging, ignore_errors=True)


def _install(staging: Path, folder: Path) -> None:
    """Move what is staged into `folder`, the manifest last. May be killed and called again."""
    files = sorted(path for path in staging.rglob("*") if path.is_file() and path.name not in (MANIFEST, MARK))
    for path in [*files, staging / MANIFEST]:
        target = folder / path.relative_to(staging)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        fsync(target.parent)
    shutil.rmtree(staging)
