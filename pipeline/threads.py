"""Threads that read the next item while one is used, and that work on chunks of many items side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def num_cores() -> int:
    """The number of cores that this process may use, such as those of a Slurm job."""
    return len(os.sched_getaffinity(0))


def read_ahead(items: Iterable[Item], read: Callable[[Item], Value]) -> Iterator[tuple[Item, Value]]:
    """Yield (item, read(item)) for each item, in order. A thread reads the next value while one is used."""
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
    """Yield [work(item) for each item of a chunk], chunk after chunk, in order. Many threads work on the chunks.

    Args:
        items: The items to work on.
        work: The function of an item. Any thread may call it.
        workers: The number of threads; 0 means one per core.
        size: The items per chunk: enough to hide the cost of a task, few enough to balance the threads.
    """

    def chunk(begin: int) -> list[Value]:
        return [work(item) for item in items[begin : begin + size]]

    with ThreadPoolExecutor(workers or num_cores()) as pool:
        yield from pool.map(chunk, range(0, len(items), size))
