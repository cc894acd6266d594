"""Standard output and standard error that no closed pipe and no full disk can break: they are displays."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO


class Stream(io.FileIO):
    """A descriptor that can always be written to. `lost` is the error by which output began to be lost, if it was."""

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, unless that failed before."""
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def keep_streams() -> Stream:
    """Replace sys.stdout and sys.stderr; returns the first one's end, which tells whether output was lost.

    What does not fit their encoding, such as the name of a class, is written with backslashes.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # it was closed: a file of ours would take its number
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    out, err = Stream(1, "w", closefd=False), Stream(2, "w", closefd=False)
    sys.stdout, sys.stderr = _text(out, sys.stdout), _text(err, sys.stderr)
    return out


def _text(stream: Stream, before: TextIO | None) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    at_once = stream.isatty() or stream.fileno() == 2 or "PYTHONUNBUFFERED" in os.environ
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=at_once)
