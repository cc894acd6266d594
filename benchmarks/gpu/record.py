"""Figures as they come, so that a run that is cut short has still said something; and the time that is left."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Record:
    """Two files in a folder: `gpu.jsonl` has one line of JSON per figure, `gpu.txt` has what is printed."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.lines, self.text = out / "gpu.jsonl", out / "gpu.txt"
        self.started = time.monotonic()
        self.failed = False

    def add(self, part: str, text: str, **figures: Any) -> None:
        """Write one figure: for people, and for programs."""
        seconds = round(time.monotonic() - self.started, 1)
        _append(self.lines, json.dumps({"part": part, "at_s": seconds, **figures}))
        _append(self.text, text)
        print(text, flush=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within, an error is written down and ends this part only."""
        try:
            yield
        except Exception as error:
            self.failed = True
            self.add(name, f"{name} FAILED: {traceback.format_exc()}", error=repr(error))


def _append(path: Path, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


class Clock:
    """Counts down."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, below 0 once they are over."""
        return self.end - time.monotonic()

    def share(self, of: float) -> Clock:
        """A clock over a share of what is left."""
        return Clock(max(self.left, 0.0) * of)
