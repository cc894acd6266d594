"""Whether a Prefect server watches a command, and the environment that Prefect reads when it is imported."""

from __future__ import annotations

import os

SERVER_VARIABLES = ("PREFECT_API_URL", "PREFECT_PROFILE")
"""A user who sets one of these names a server. Without them Prefect is not even imported: it would have to start a
server of its own, which costs more time than a small run, and nobody would look at it."""

TERMINAL = {
    # The terminal shows our progress bars. Prefect's server still gets every log line.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "selftrain",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def is_watched() -> bool:
    """Whether the environment names a Prefect server."""
    return any(os.environ.get(name) for name in SERVER_VARIABLES)


def prepare() -> None:
    """Set the variables that are not set yet, before Prefect is imported. All others are the user's."""
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        for name, value in TERMINAL.items():
            os.environ.setdefault(name, value)
