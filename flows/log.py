"""The log of a run in the Prefect UI: what the pipeline logs, with the stage's name, wherever the flow runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger


@contextlib.contextmanager
def logged_in_the_ui() -> Iterator[None]:
    """Send what the pipeline logs from INFO on to the flow run, and what a stage logs to its task run.

    It needs no setting of Prefect's, so a run on a worker has the same log as one from a terminal. Prefect's own
    loggers pass each record on to the console of a worker, so ours does not do so too.
    """
    log, handler = logging.getLogger("selftrain"), _ToRun(logging.INFO)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


class _ToRun(logging.Handler):
    """Hands each record to the logger of the task run or of the flow run that it comes from."""

    def emit(self, record: logging.LogRecord) -> None:
        if FlowRunContext.get() is None:  # a thread of its own, which Prefect knows nothing of
            return
        text, task = record.getMessage(), TaskRunContext.get()
        if task is not None:
            between = "\n" if "\n" in text else " "  # a table begins on a line of its own
            text = f"{task.task_run.name}:{between}{text}"
        get_run_logger().log(record.levelno, "%s", text)
