"""Damage as disks and hands do it to files, and what a reader makes of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import UserError

T = TypeVar("T")
PAGE = 4096
_CLOCK = itertools.count(10**18)


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What is read, or the message of the UserError. Any other exception passes through and fails the test."""
    try:
        return read(), ""
    except UserError as error:
        return None, str(error)


def put(path: Path, content: bytes) -> None:
    """Write a file with a time of its own. The clock may stand still between two writes, which would look like one."""
    path.write_bytes(content)
    os.utime(path, ns=(next(_CLOCK), next(_CLOCK)))


def rotten(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Copies of the same length: every second one with a byte changed, the others with (the rest of) a page zeroed."""
    draws = np.random.default_rng(seed)
    for turn in range(number):
        place = int(draws.integers(len(content)))
        if turn % 2:
            end = min(place + PAGE, len(content))
            yield content[:place] + bytes(end - place) + content[end:]
        else:
            yield content[:place] + bytes([content[place] ^ int(draws.integers(1, 256))]) + content[place + 1 :]


def mutations(content: bytes, number: int, seed: int = 0) -> Iterator[bytes]:
    """Copies that are rotten, cut, doubled in part, or have a few bytes of their own or of rubbish put elsewhere."""
    draws = np.random.default_rng(seed)
    for turn, damaged in enumerate(rotten(content, number, seed)):
        start, end = sorted(draws.integers(0, len(content) + 1, 2).tolist())
        to = int(draws.integers(len(content) + 1))
        part = content[start : min(end, start + 16)]
        rubbish = draws.integers(0, 256, 4, np.uint8).tobytes()
        yield (
            damaged,
            damaged,
            content[:start],
            content[:end] + content[start:],
            content[:to] + part + content[to:],
            content[:to] + part + content[to + len(part) :],
            content[:to] + rubbish + content[to + 4 :],
        )[turn % 7]


_STRANGE = (None, True, -1, 0, 2**63, 1e308, "", "x", [], [1, 2], {}, {"x": []}, [[]], "../x", "\ud800")


def json_mutations(value: Any, number: int, seed: int = 0) -> Iterator[Any]:
    """Copies of a JSON value in which one value, at any depth, is replaced by one of another kind, or is missing."""
    draws = np.random.default_rng(seed)
    paths = list(_paths(value))
    for _ in range(number):
        path = paths[int(draws.integers(len(paths)))]
        strange = int(draws.integers(len(_STRANGE) + 2))
        yield _replaced(value, path, strange)


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, below in items:
        yield (key,)
        for rest in _paths(below):
            yield (key, *rest)


def _replaced(value: Any, path: tuple[Any, ...], strange: int) -> Any:
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = _replaced(value[key], tuple(rest), strange)
    elif strange < len(_STRANGE):
        copy[key] = _STRANGE[strange]
    else:
        del copy[key]
    return copy
