"""The consoles for people. They show what others wrote, such as names of classes and files, as it is, and safely."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.errors import escaped


class Terminal(Console):
    """A console without markup, which `[red]` in a name would be, that escapes control characters of texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of anything that is shown: texts, which are escaped, and rich's own moves of the cursor."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escaped(text), style, control)


@functools.cache
def terminal() -> Terminal:
    """The one console on stderr. Bars, warnings and errors share it, so that none overwrites another."""
    return Terminal(stderr=True)


@functools.cache
def output() -> Terminal:
    """The one console on stdout, for what a command was asked for."""
    return Terminal()


def as_text(table: RenderableType) -> str:
    """A table as plain text, for a log."""
    console = Terminal(file=io.StringIO(), width=100)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
