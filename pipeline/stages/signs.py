"""Signs of life in files, by which processes on machines with one file system know that others live, and what they say.

No clocks of two machines are compared. Who reads a sign notes by a clock of its own when it changed last.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import UserError
from pipeline.files import Json, atomic_file

BEAT_S = 1.0
"""Between two signs, and between two looks at one."""
LOST_S = 60.0
"""Without a sign for so long, a process is taken for lost. A file server that restarts may take half of it."""


class Sign:
    """A file that a thread writes again every second, while the block runs. It holds what was said last.

    Raises:
        UserError: it cannot be written. Later, what cannot be written is a sign that is missing.
    """

    def __init__(self, path: Path, **said: Json) -> None:
        self.path, self._said = path, said
        self._lock, self._ends = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sign of life", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.set()
        self._thread.join()

    def say(self, **said: Json) -> None:
        """Say this from now on, in place of what was said before."""
        with self._lock:
            self._said = said
        with contextlib.suppress(UserError):
            self._write()

    def _beat(self) -> None:
        while not self._ends.wait(BEAT_S):
            with contextlib.suppress(UserError):
                self._write()

    def _write(self) -> None:
        with self._lock, atomic_file(self.path, durable=False) as file:
            file.write(json.dumps({"at": time.time_ns(), **self._said}).encode())


@dataclass
class _Seen:
    said: dict[str, Any]
    looked: float
    changed: float
    """When it changed last; at first, when it was first looked at."""
    has_changed: bool = False


class Observer:
    """Looks at signs, at each at most once a second."""

    def __init__(self) -> None:
        self._seen: dict[Path, _Seen] = {}

    def see(self, path: Path) -> dict[str, Any]:
        """What a sign says; nothing where there is none."""
        return self._look(path).said

    def lives(self, path: Path) -> bool:
        """Whether a sign was seen to change, and is not lost since. At the first look nobody knows."""
        return self._look(path).has_changed and not self.is_lost(path)

    def is_lost(self, path: Path) -> bool:
        """Whether a sign did not change for LOST_S seconds."""
        return self.silent_s(path) > LOST_S

    def silent_s(self, path: Path) -> float:
        """The seconds since a sign changed, or since the first look."""
        return time.monotonic() - self._look(path).changed

    def _look(self, path: Path) -> _Seen:
        now, seen = time.monotonic(), self._seen.get(path)
        if seen is None:
            seen = self._seen[path] = _Seen(_read(path), now, now)
        elif now - seen.looked >= BEAT_S:
            seen.looked = now
            if (said := _read(path)) and said != seen.said:
                seen.said, seen.changed, seen.has_changed = said, now, True
        return seen


def _read(path: Path) -> dict[str, Any]:
    """The content of a sign; nothing where it is missing, or a file server does not answer."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
