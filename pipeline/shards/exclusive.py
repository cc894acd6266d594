"""One process at a time: a lock on a file of the cache, which dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError


@contextlib.contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an flock. Yields False if another process or thread has it and `wait` is not set.

    Raises:
        UserError: the file cannot be written, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; set data.cache_dir to another folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        except OSError as error:
            raise UserError(
                f"{path.parent} is on a file system that has no locks ({error.strerror}); set data.cache_dir to a "
                "folder on another disk"
            ) from error
        else:
            yield True
    finally:
        os.close(descriptor)
