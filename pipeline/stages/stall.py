"""Whether a stage stands still, as one does whose ranks wait for each other, or whose disk no longer answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.stages.progress import Progress


class Stall:
    """Sees each report of a stage and tells whether it is the same for longer than `limit_s`; 0 means never."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s = limit_s
        self.reached = False
        """Whether the stage has stood still for so long."""
        self._clock = clock
        self._last: tuple[Progress | None, float] = (None, clock())

    def sees(self, now: Progress | None) -> bool:
        """Take the newest report, which may be the one before; returns whether the limit is reached."""
        if now != self._last[0]:
            self._last = (now, self._clock())
        if self.limit_s and self._clock() - self._last[1] > self.limit_s:
            self.reached = True
        return self.reached

    def __str__(self) -> str:
        now = self._last[0]
        where = f"at {now.done:,} of {now.total:,} {now.unit}" if now else "before its first report"
        return f"stood still for {self.limit_s / 60:g} minutes {where} (runtime.stall_minutes)"
