"""Threads: the next item is read while one is used, and chunks of many items are worked on side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def num_cores() -> int:
    """Cores that this process may use, such as those of a Slurm job."""
    return len(os.sched_getaffinity(0))


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


def map_chunks(
    items: Sequence[Item], work: Callable[[Item], Value], *, workers: int = 0, size: int = 64
) -> Iterator[list[Value]]:
    """[work(item) for each item of a chunk], chunk after chunk, in order; the chunks are worked on by many threads.

    Args:
        items: What to work on.
        work: Called from any thread.
        workers: Threads; 0 means one per core.
        size: Items per chunk: enough to hide what a task costs, few enough to balance the threads.
    """

    def chunk(begin: int) -> list[Value]:
        return [work(item) for item in items[begin : begin + size]]

    with ThreadPoolExecutor(workers or num_cores()) as pool:
        yield from pool.map(chunk, range(0, len(items), size))
