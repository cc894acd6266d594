"""The lock of a run folder, and the run folder that a path lies in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import cannot_write

LOCK = "run.lock"


class FolderInUse(UserError):
    """Another process holds the lock of the folder. Later it will be free."""


def find_run(path: Path) -> Path | None:
    """The run folder that is this path or contains it; None if there is none."""
    path = path.absolute()
    return next((f for f in (path, *path.parents) if (f / LOCK).exists() and (f / "config.yaml").exists()), None)


@contextlib.contextmanager
def run_lock(folder: Path, *, wait_s: float = 20.0) -> Iterator[int]:
    """Hold the lock of a run folder; yields its file descriptor, which child processes inherit.

    The lock is free when the last process that holds it ends, however it ends. A command that is typed again right
    after a kill therefore waits for the old children.

    Raises:
        FolderInUse: another process still holds the lock after `wait_s` seconds.
        UserError: the folder cannot be written or locked.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; choose another folder or fix permissions"
        ) from error
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
                    raise FolderInUse(
                        f"{folder} is in use by process {owner}; wait for it, stop it, or choose another folder"
                    ) from None
                time.sleep(0.1)
            except OSError as error:
                raise UserError(
                    f"{folder} is on a file system that has no locks ({error.strerror}), so two commands could write "
                    "into it; choose a folder on another disk"
                ) from error
        content = os.pread(descriptor, 64, 0).strip()
        if content and not content.isdigit():
            raise UserError(f"{path} is no lock of selftrain; rename it, or choose another folder")
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield descriptor
    finally:
        os.close(descriptor)
