"""SIGTERM and SIGINT become a request to stop at the next boundary."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """A flag that SIGTERM or SIGINT sets. A stage reads it at its boundaries, saves, and exits with code 75.

    Without `listen` it is never set, and the signals of this process are left as they are.
    """

    def __init__(self, *, listen: bool = True) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT) if listen else ():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
