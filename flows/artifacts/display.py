"""How anything is shown in Prefect: an error is a warning, and a server that does not answer is asked once."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import re
from collections.abc import Iterator, Sequence

from flows.impatience import impatient

_logger = logging.getLogger("selftrain.flows")


@contextlib.contextmanager
def never_fatal(what: str) -> Iterator[None]:
    """Turn any error of the block into a warning. The server gets one try, because a stop must not wait for it."""
    try:
        with impatient():
            yield
    except Exception as error:  # days of training outweigh any error of a display
        _logger.warning("cannot %s in Prefect (%s: %s); the run goes on", what, type(error).__name__, error)


def image(title: str, data: bytes, kind: str = "png") -> str:
    """A picture as Markdown that needs no other file."""
    return f"![{title}](data:image/{kind};base64,{base64.b64encode(data).decode()})"


def plot(title: str, png: bytes) -> str:
    """A plot of the report as Markdown: on white, because its ink is dark, as is the UI."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    buffer = io.BytesIO()
    Image.alpha_composite(white, picture).convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "png")
    return image(title, buffer.getvalue())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown. Columns after the first are aligned to the right."""
    return [
        f"| {' | '.join(columns)} |",
        f"| :--- |{' ---: |' * (len(columns) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def plain(text: str) -> str:
    """A name of the user's in one line, which cannot be taken for Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", " ".join(text.split()))
