"""Runs side by side in threads, whose stages are processes of their own."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from typing import TypeVar

from pipeline.errors import Interrupted

T = TypeVar("T")
R = TypeVar("R")


class Locks:
    """A lock per name, for what one thread makes and others then use."""

    def __init__(self) -> None:
        self._own = threading.Lock()
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    def __call__(self, name: str) -> AbstractContextManager[object]:
        """The lock of a name."""
        with self._own:
            return self._locks[name]


def several_at_a_time(
    items: Sequence[T], work: Callable[[T], R], number: int, stop: threading.Event | None = None
) -> Generator[tuple[T, R]]:
    """Yield items with what `work` makes of them; with `number` above 1 in threads, in the order in which they end.

    If one raises, or the caller does, `stop` is set, so that those under way can save and end; the others do not begin.
    Signals reach the main thread, which waits here, and so they end all.
    """
    if number == 1:
        for item in items:
            yield item, work(item)
        return
    stop = stop or threading.Event()

    def guarded(item: T) -> R:
        if stop.is_set():
            raise Interrupted("not begun")
        try:
            return work(item)
        except BaseException:
            stop.set()  # here, so that this thread takes no other item
            raise

    with ThreadPoolExecutor(number, "run") as pool:
        futures = {pool.submit(guarded, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, Interrupted):  # perhaps because of what went wrong in another
                for cause in (future.exception() for future in futures if not future.cancelled()):
                    if isinstance(cause, Exception):
                        raise cause from None
            raise
