"""Waiting for real processes.

Limits end a test that hangs. They are no claim about speed: on a machine that is busy with ten other things everything
still passes, only later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 900.0
"""For one wait."""
FOREVER_S = 3600.0
"""What a process sleeps that a test stops: longer than any test waits, and yet not for ever where a test failed."""


def wait_for(condition: Callable[[], T], poll_s: float = 0.005) -> T:
    """Wait until a condition holds; returns its value."""
    deadline = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {LIMIT_S:g} s"
        time.sleep(poll_s)
    return value
