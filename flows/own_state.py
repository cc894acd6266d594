"""A flow run that looks at its own state on the server: a cancel is obeyed though nobody passes it on.

Prefect's worker does pass it on, unless the server restarted or the worker did since the run began.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import threading
from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import get_client

from flows.impatience import impatient

POLL_S = 15.0
_logger = logging.getLogger("selftrain.flows")


@contextlib.contextmanager
def polled(run_id: UUID) -> Iterator[None]:
    """Look at the run's state every 15 seconds while the block runs. If it is cancelled, or was declared dead, this
    process gets a SIGTERM, as from the worker. A server that does not answer costs one warning."""
    done = threading.Event()
    context = contextvars.copy_context()  # Prefect's settings
    threading.Thread(target=context.run, args=(_poll, run_id, done), name="own-state", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _poll(run_id: UUID, done: threading.Event) -> None:
    answers = True
    while not done.wait(POLL_S):
        try:
            with impatient(), get_client(httpx_settings={"timeout": POLL_S}, sync_client=True) as client:
                state = client.read_flow_run(run_id).state
        except Exception as error:  # whatever the client raises: no server is a reason to end a training
            if answers:
                why = f"{type(error).__name__}: {error}"
                _logger.warning("Prefect's server does not tell the state of this run (%s); it goes on", why)
            answers = False
            continue
        if not answers:
            _logger.warning("Prefect's server answers again")
        answers = True
        if state is not None and (state.is_cancelling() or state.is_final()) and not done.is_set():
            _logger.warning("this run is %s on the server, so it stops", state.name)
            os.kill(os.getpid(), signal.SIGTERM)
            return
