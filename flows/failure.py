"""Errors that people can act on, as states: the message is all that the UI shows, without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect.client.schemas.objects import State
from prefect.states import Failed

from pipeline.errors import UserError
from pipeline.stages.launch import StageFailed

T = TypeVar("T")


def failed_by_message(call: Callable[[], T]) -> T | State[Any]:
    """What `call` returns, or the failed state of its error. Whoever asks that state for its result gets the error."""
    try:
        return call()
    except (UserError, StageFailed) as error:
        return Failed(message=str(error), data=error)
