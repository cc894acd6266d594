"""Errors that a user can act on, and the exit codes of every selftrain process."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILURE = 1  # a defect of selftrain, with its traceback
EXIT_USER_ERROR = 2  # bad input: a message without a traceback
EXIT_INTERRUPTED = 75  # SIGTERM or SIGINT: the same command goes on from what is saved (EX_TEMPFAIL)


class UserError(ValueError):
    """The input or the environment is bad. The message names the file or config key, the value and the fix."""


GO_ON = "Type the same command to go on."


class Interrupted(BaseException):
    """SIGTERM, SIGINT or a request stopped a stage or a run. The message says what is saved.

    Like KeyboardInterrupt it can come up anywhere, so that no `except Exception` may take it for an error of its own.
    """


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """A suggestion for the end of an error message: the nearest valid name, or all valid names."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"did you mean `{nearest[0]}`?" if nearest else f"valid: {', '.join(names)}"


LONGEST = 10_000
"""The most characters of a message that people are shown."""


def shown(message: str) -> str:
    """A message as a terminal may get it: escaped, and cut where it is too long to be read."""
    text = escaped(message)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters)"


def escaped(text: str) -> str:
    """A text without control characters, which names of files and classes can hold; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
