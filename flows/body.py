"""The body of a flow as all flows of ours run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.schemas.objects import State

from flows.ends import obeying_its_run
from flows.failure import failed_by_message
from flows.log import logged_in_the_ui

T = TypeVar("T")


def run_body(body: Callable[[], T]) -> T | State[Any]:
    """Run the body of a flow; returns what it returns, or the state of an error that people can act on.

    What the pipeline logs goes to the UI, and early ends become states of the run.

    Raises:
        Abort: the flow run has its state; Prefect is to set no other.
        Interrupted: a signal stopped a run that somebody typed.
    """
    with logged_in_the_ui():
        return failed_by_message(obeying_its_run()(body))
