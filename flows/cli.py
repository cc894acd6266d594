"""The console script `selftrain`: it runs a verb and turns its outcome into a message and an exit code."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

from pipeline.errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER_ERROR,
    GO_ON,
    Interrupted,
    UserError,
    shown,
)
from pipeline.stages import interrupt
from pipeline.stages.streams import keep_streams


def main() -> NoReturn:
    """The console entry. Exit codes are those of `pipeline.errors`."""
    interrupt.listen()  # before the slow imports
    try:
        code = _outcome()
    except BaseException:  # Interrupted, or what became of it on its way
        if not interrupt.ends():
            raise
        code = _say(f"{interrupt.MESSAGE}. {GO_ON}", EXIT_INTERRUPTED)
    sys.exit(code)


def _outcome() -> int:
    """Run the verb of the command line; returns the exit code."""
    stdout = keep_streams()
    from flows.verbs import app

    _log_to_terminal()
    code = EXIT_OK
    try:
        app(prog_name="selftrain")
    except SystemExit as end:
        code = int(end.code or EXIT_OK)
    except UserError as error:
        code = _say(f"error: {error}", EXIT_USER_ERROR)
    except Interrupted as request:
        code = _say(f"{request}. {GO_ON}", EXIT_INTERRUPTED)
    except Exception as error:
        from pipeline.stages.launch import StageFailed

        if not isinstance(error, StageFailed):
            raise
        code = _say(f"error: {error}", EXIT_FAILURE)
    if code == EXIT_OK and interrupt.ends():  # a library took Interrupted for its own
        raise Interrupted(interrupt.MESSAGE)
    sys.stdout.flush()
    if code == EXIT_OK and stdout.lost is not None and not isinstance(stdout.lost, BrokenPipeError):
        why = stdout.lost.strerror
        code = _say(
            f"error: what is printed could not be written ({why}); free space, or send it elsewhere", EXIT_USER_ERROR
        )
    interrupt.end()
    return code


def _say(message: str, code: int) -> int:
    from pipeline.stages.terminal import terminal

    color = "yellow" if code == EXIT_INTERRUPTED else "red"
    terminal().print(shown(message), style=color, soft_wrap=True)
    return code


class _Terminal(logging.Handler):
    """Prints warnings above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from pipeline.stages.terminal import terminal

        text = f"{record.levelname.lower()}: {record.getMessage()}"
        terminal().print(shown(text), style="yellow", soft_wrap=True)


def _log_to_terminal() -> None:
    logger = logging.getLogger("selftrain")
    logger.addHandler(_Terminal(logging.WARNING))
    logger.propagate = False


if __name__ == "__main__":
    main()
