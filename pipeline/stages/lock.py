"""The lock of a folder that is written or read, and the run folder that a path lies in."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import cannot_write

LOCK = "run.lock"
READ_WAIT_S = 600.0
"""How long a run waits for images that are being packed. A pack may take long, and a run that failed for it would have
to be started again."""
TELL_S = 2.0

log = logging.getLogger("selftrain.lock")


class FolderInUse(UserError):
    """Another process holds the lock of the folder. Later it will be free."""


class NoLocks(UserError):
    """The file system of a folder has no locks."""


def find_run(path: Path) -> Path | None:
    """The run folder that is this path or contains it; None if there is none."""
    path = path.absolute()
    return next((f for f in (path, *path.parents) if (f / LOCK).exists() and (f / "config.yaml").exists()), None)


def refuse_address(folder: Path) -> None:
    """Refuse an address in place of a folder to write into; `Path` has taken one of its slashes away."""
    for place, part in enumerate(folder.parts):
        if re.fullmatch(r"(s3|gs|az|file):", part):
            address = f"{part}//{'/'.join(folder.parts[place + 1 :])}"
            raise UserError(
                f"{address} is an address, where this command writes nothing; give a folder here, and copy it there"
            )


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
    refuse_address(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror}; choose another folder or fix permissions"
        ) from error
    try:
        _take(descriptor, fcntl.LOCK_EX, folder, wait_s)
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


@contextlib.contextmanager
def read_lock(folder: Path, *, wait_s: float = READ_WAIT_S) -> Iterator[None]:
    """Keep others from packing into a folder while it is read. Any number of processes may read at once.

    A folder without a lock file is not locked, since nobody packed there, or it was copied. Nothing is made there. On
    a file system that has no locks, a warning asks people to see to it.

    Raises:
        FolderInUse: another process still packs into it after `wait_s` seconds.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield
        return
    try:
        try:
            _take(descriptor, fcntl.LOCK_SH, folder, wait_s)
        except NoLocks:
            log.warning("%s is on a file system that has no locks; pack nothing into it while this runs", folder)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, how: int, folder: Path, wait_s: float) -> None:
    """Wait for a lock: LOCK_EX, or LOCK_SH that several processes may hold."""
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited > wait_s:
                raise FolderInUse(
                    f"{folder} is {_whose(descriptor)}; wait for it, stop it, or choose another folder"
                ) from None
            if waited > TELL_S and not told:
                told = True
                log.warning("%s is %s; waiting up to %g s for it", folder, _whose(descriptor), wait_s)
            time.sleep(0.1)
        except OSError as error:
            raise NoLocks(
                f"{folder} is on a file system that has no locks ({error.strerror}), so two commands could write "
                "into it; choose a folder on another disk"
            ) from error


def _whose(descriptor: int) -> str:
    """Who holds the lock that could not be taken."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return "read by a run"
    owner = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
    return f"in use by process {owner}"
