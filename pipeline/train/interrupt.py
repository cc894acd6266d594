"""SIGTERM and SIGINT as a request to stop at the next boundary."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """Set by SIGTERM or SIGINT from its making on; a stage reads it between steps, saves and exits with code 75."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
