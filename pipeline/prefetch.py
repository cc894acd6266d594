"""Read the next item in a thread while one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Value]) -> Iterator[tuple[Item, Value]]:
    """(item, read(item)) for every item, in order; one read is under way while the value before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        ahead: tuple[Item, Future[Value]] | None = None
        for item in items:
            behind, ahead = ahead, (item, thread.submit(read, item))
            if behind:
                yield behind[0], behind[1].result()
        if ahead:
            yield ahead[0], ahead[1].result()
