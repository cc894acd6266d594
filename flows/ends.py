"""The ends of a flow run that are no result: it is cancelled, preempted, stands still, or finds its folder in use.

A stopped run reports by itself what becomes of it. Prefect's own reports need the worker and the connection that
started it, and either may have died since: then a run would be Crashed, or "Running" for ever.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.states import Cancelled, Scheduled

from flows.artifacts import never_fatal
from flows.early_end import early_end, num_attempts, warnings_of
from flows.engine import KEPT_VARIABLE
from flows.own_state import polled
from pipeline.errors import Interrupted
from pipeline.stages import interrupt
from pipeline.stages.launch import StageStalled
from pipeline.stages.lock import FolderInUse
from pipeline.stages.progress import Progress, show_progress
from pipeline.stages.terminal import output

PATIENCE_S = 3600.0
"""How long an end waits for a server that is away. All that is trained is on disk, and no GPU is in use meanwhile."""
TRY_AGAIN_S = 5.0
_logger = logging.getLogger("selftrain.flows")

T = TypeVar("T")


@contextlib.contextmanager
def obeying_its_run() -> Iterator[None]:
    """Run the body of a flow, and turn its early ends into states of the flow run.

    A signal, and a cancel that the run sees on the server, stop it where it is, and save. A run of a deployment then
    becomes Cancelled if somebody asked for that, else AwaitingRetry, so that a worker starts it again. It also
    becomes AwaitingRetry if a stage stood still, and AwaitingFolder while another run uses its folder. A run that
    somebody typed has no worker that would start it again: only its cancel becomes a state, and all else is raised.

    Raises:
        Abort: the flow run has its state; Prefect is to set no other.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        yield
        return
    deployed = run.deployment_id is not None
    attempts = num_attempts()
    if deployed:
        _warn(run)
    try:
        with _our_signals() if deployed else contextlib.nullcontext(), polled(run.id):
            yield
    except Interrupted as stop:
        if not deployed and not _is_cancelled(run.id):
            raise
        raise _end(run.id, str(stop), attempts) from stop
    except (FolderInUse, StageStalled) as error:
        if not deployed:
            raise
        raise _end(run.id, str(error), attempts, waits=isinstance(error, FolderInUse)) from error
    if deployed:  # the engine, which reports the result, has less patience
        when_it_answers("report the result", lambda: _read(run.id))


@contextlib.contextmanager
def bars() -> Iterator[Callable[[Progress], None]]:
    """Yield what shows the progress of stages: bars for who typed the command. Under a worker, whose terminal is
    nobody's, nothing is shown, tables of selections neither."""
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.deployment_id:
        console, before = output(), output().quiet
        console.quiet = True
        try:
            yield lambda _: None
        finally:
            console.quiet = before
        return
    with show_progress() as show:
        yield show


def cancelled_if_stopped(run: Callable[[], T]) -> T | State[Any]:
    """What a task does, or the state of one that was stopped: Cancelled, without a traceback."""
    try:
        return run()
    except Interrupted as stop:
        return Cancelled(message=str(stop))


def go_on(state: State[Any]) -> None:
    """Raise Interrupted if this is the state of a task that was stopped."""
    if state.is_cancelled():
        raise Interrupted(state.message)


def report_end(
    run_id: UUID,
    message: str,
    attempts: int,
    *,
    waits: bool = False,
    since: datetime.datetime | None = None,
) -> State[None] | None:
    """Set the state of a run that ended early; returns the state that it has then.

    Args:
        since: When the attempt began that has ended. If the run was scheduled later, the attempt has reported its end,
            and another one may be under way.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(run_id)
        history = [(state.type.value, state.name or "") for state in sorted(states, key=lambda s: s.timestamp)]
        told = since is not None and any(state.is_scheduled() and state.timestamp > since for state in states)
        if told or (end := early_end(history, message, waits=waits, attempts=attempts)) is None:
            return client.read_flow_run(run_id).state
        state: State[None] = State(type=StateType(end.type), name=end.name, message=end.message)
        if end.type == "SCHEDULED":
            later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=end.delay_s)
            state = Scheduled(scheduled_time=later, name=end.name, message=end.message)
        client.set_flow_run_state(run_id, state, force=True)
    _logger.warning("%s: %s", end.name, end.message)
    return state


def _end(run_id: UUID, message: str, attempts: int, *, waits: bool = False) -> Abort:
    """Report an end; returns what leaves the engine, which sets no other state after it."""
    interrupt.ignore()  # it ends, and a second signal would end it before it has said so
    abort = Abort(message)
    abort.state = when_it_answers(  # type: ignore[attr-defined]  # the engine looks for it
        "report how the run ended", lambda: report_end(run_id, message, attempts, waits=waits)
    )
    return abort


def when_it_answers(what: str, call: Callable[[], T]) -> T:
    """Call the server until it answers; returns what `call` does.

    Args:
        what: What the call is to do, for the log.

    Raises:
        httpx.HTTPError: it has not answered for an hour.
    """
    deadline, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                _logger.warning("cannot %s (%s: %s); trying again", what, type(error).__name__, error)
            told = True
            time.sleep(TRY_AGAIN_S)


def _read(run_id: UUID) -> State[None] | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state


def _is_cancelled(run_id: UUID) -> bool:
    try:
        state = _read(run_id)
    except httpx.HTTPError:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _warn(run: FlowRun) -> None:
    assert run.deployment_id is not None
    with never_fatal("look at the limits of the deployment"), get_client(sync_client=True) as client:
        limit = client.read_deployment(run.deployment_id).global_concurrency_limit
        worker = run.labels.get("prefect.worker.type")
        for text in warnings_of(limit.limit if limit else None, str(worker), kept=KEPT_VARIABLE in os.environ):
            _logger.warning("%s", text)


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Have signals raise Interrupted in the block, as in a command, and not Prefect's TerminationSignal."""
    before = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    interrupt.listen()
    try:
        yield
    finally:
        if not interrupt.ends():
            for number, handler in before.items():
                signal.signal(number, handler)
