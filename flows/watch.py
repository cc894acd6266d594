"""Call a flow on a Prefect server, and tell errors of the server from those that the loop raises."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect import flow_engine
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort

from pipeline.errors import Interrupted, UserError

T = TypeVar("T")


class ServerGone(Exception):
    """The Prefect server stopped answering while the flow ran."""


def watched(call: Callable[[], T]) -> T:
    """Call a flow on the server of PREFECT_API_URL.

    Raises:
        UserError: no server answers at the beginning, or the flow raised it.
        Interrupted: the flow raised it.
        ServerGone: the server stopped answering later; all that was finished by then is on disk.
    """
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise UserError(
            f"no Prefect server answers at {client.api_url} ({problem}); start it, set PREFECT_API_URL to that of "
            "another one, or pass --no-prefect to go without"
        )
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        for name in ("prefect.flow_runs", "prefect.task_runs"):  # the server gets these logs; the caller tells people
            logging.getLogger(name).propagate = False
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it logs the events left at exit
    flow_engine.capture_sigterm = contextlib.nullcontext  # type: ignore[attr-defined,assignment]  # a stop is ours, and comes once
    try:
        return call()
    except Abort as end:  # it was cancelled on the server
        raise Interrupted(str(end)) from end
    except httpx.HTTPError as error:
        for outcome in _chain(error):
            if isinstance(outcome, UserError | Interrupted):  # Prefect could not report it to the server
                raise outcome from error
        raise ServerGone(str(error) or type(error).__name__) from error


def _chain(error: BaseException) -> list[BaseException]:
    """The error, the error that was being handled when it was raised, and so on."""
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    return chain
