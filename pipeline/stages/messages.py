"""What the process of a stage logs from INFO on, in a file from which its parent logs it too."""

from __future__ import annotations

import logging
from pathlib import Path

MESSAGES = "messages.jsonl"
log = logging.getLogger("selftrain.launch")


class MessageFile(logging.Handler):
    """Writes messages as JSON lines, for the parent to log."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        from pipeline.errors import UserError
        from pipeline.files import append_json

        try:
            append_json(self.path, {"level": record.levelno, "message": record.getMessage()})
        except UserError:  # a full disk ends no training for a line of its log; the next checkpoint tells of it
            self.handleError(record)


class Messages:
    """What a child says, each message logged once and as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = self._told = 0

    def tell(self) -> None:
        """Log the messages that are new."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        from pipeline.files import read_lines

        lines = read_lines(self.path, torn=True)
        for line in lines[self._told :]:
            log.log(line["level"], "%s", line["message"])
        self._size, self._told = size, len(lines)
