"""SIGTERM and SIGINT: they end a command with exit code 75 wherever it is, and a stage at its next boundary.

However many signals come, a command is interrupted once. The rest of a storm does not disturb what it then cleans up
and says.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pipeline.errors import EXIT_INTERRUPTED, GO_ON, Interrupted

if TYPE_CHECKING:
    from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MESSAGE = "stopped; what was finished is saved"
PATIENCE_S = 10.0
"""A signal that comes so long after a command began to end finds one that hangs, and ends it at once."""
_ends_since: list[float] = []


def listen() -> None:
    """Have the first signal raise Interrupted in the main thread. A command calls this before its slow imports.

    A terminal that is closed ends nothing: it is a display, and a connection that breaks closes it too.
    """
    atexit.register(ignore)  # the first to be registered is the last to be called
    sys.unraisablehook = _leave_if_lost
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def ends() -> bool:
    """Whether the command was interrupted, or is done."""
    return bool(_ends_since)


def end() -> None:
    """Let signals change nothing from here on: the command is done, or says why it stopped."""
    _ends_since.append(time.monotonic())


def ignore() -> None:
    """Have the kernel discard signals. Python gives handlers up before it exits, and a late signal would kill it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_at_once() -> None:
    """Have signals exit with code 75: for a process that has nothing to save yet."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(EXIT_INTERRUPTED))


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Keep signals while the block runs; yields a function that tells whether one came.

    Handlers can be set in the main thread only; in others no signal is seen.

    Raises:
        Interrupted: at the end of the block, where one came and the block itself raised nothing.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            before[number] = signal.signal(number, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        if came:
            end()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    if came:
        end()
        raise Interrupted(MESSAGE)


class StopRequest:
    """A flag that SIGTERM or SIGINT sets. A stage reads it at its boundaries, saves, and exits with code 75.

    Without `listen` it is never set, and the signals of this process are left as they are.
    """

    def __init__(self, *, listen: bool = True) -> None:
        self.requested = False
        for number in SIGNALS if listen else ():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    if not _ends_since:
        end()
        raise Interrupted(MESSAGE)
    if time.monotonic() - _ends_since[-1] > PATIENCE_S:
        _leave()


def _leave_if_lost(error: sys.UnraisableHookArgs) -> None:
    """Leave when Interrupted came up where Python cannot raise, such as in a destructor."""
    if isinstance(error.exc_value, Interrupted):
        _leave()
    sys.__unraisablehook__(error)


def _leave() -> None:
    """Exit as after a kill, which every folder survives and no child of ours outlives."""
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}{MESSAGE}. {GO_ON}\n".encode())
    os._exit(EXIT_INTERRUPTED)
