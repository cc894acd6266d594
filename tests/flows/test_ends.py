"""Early ends of a flow become states of its run, on Prefect's test server. tests/team has them with real processes."""

from __future__ import annotations

import datetime
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed, Pending, Running
from support.waiting import wait_for

from flows import ends, own_state
from flows.ends import cancelled_if_stopped, go_on, obeying_its_run
from pipeline.errors import Interrupted, UserError
from pipeline.stages import interrupt
from pipeline.stages.launch import StageFailed, StageStalled
from pipeline.stages.lock import FolderInUse, run_lock

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(autouse=True)
def _signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handlers of this process are pytest's."""
    for name in ("listen", "ignore"):
        monkeypatch.setattr(interrupt, name, lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)


def run(body: Callable[[], None], *, deployed: bool = True) -> FlowRun:
    """Run a flow with this body as a worker does, or as somebody who calls it; returns its run as the server has it."""

    @flow(name="ends")
    def ending() -> None:
        with obeying_its_run():
            body()

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(ending)
        if deployed:
            deployment_id = client.create_deployment(flow_id, "ends", concurrency_limit=None)
            flow_run = client.create_flow_run_from_deployment(deployment_id, state=Pending())
        else:
            flow_run = client.create_flow_run(ending, state=Pending())
        outcome: BaseException | None = None
        try:
            run_flow(ending, flow_run=flow_run)
        except BaseException as error:
            outcome = error
        result = client.read_flow_run(flow_run.id)
    result.labels["outcome"] = type(outcome).__name__
    return result  # type: ignore[no-any-return]


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def state_of(flow_run: FlowRun) -> State[Any]:
    assert flow_run.state is not None
    return flow_run.state


def set_state(state: State[Any]) -> UUID:
    """Set the state of the run under way, as somebody in the UI does; returns the run's id."""
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id), state, force=True)
    return UUID(flow_run.id)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Interrupted("the training is saved"), "AwaitingRetry"),
        (StageStalled("train stood still"), "AwaitingRetry"),
        (FolderInUse("runs/a is in use by process 7"), "AwaitingFolder"),
    ],
)
def test_a_run_of_a_deployment_is_scheduled_again(error: BaseException, name: str) -> None:
    ended = run(raising(error))
    state = state_of(ended)
    assert state.is_scheduled()
    assert state.name == name
    assert str(error) in (state.message or "")
    assert state.state_details.scheduled_time is not None
    assert state.state_details.scheduled_time > state.timestamp
    assert ended.labels["outcome"] == "Abort"  # after which the engine exits with 0


@pytest.mark.parametrize("error", [UserError("data.root: nothing there"), StageFailed("train failed")])
def test_errors_fail_the_run_as_ever(error: Exception) -> None:
    assert state_of(run(raising(error))).is_failed()


@pytest.mark.parametrize("deployed", [True, False])
def test_a_cancelled_run_that_stops_is_cancelled(deployed: bool) -> None:
    def body() -> None:
        set_state(Cancelling())
        raise Interrupted("the training is saved")

    ended = run(body, deployed=deployed)
    assert state_of(ended).is_cancelled()
    assert state_of(ended).message == "the training is saved"
    assert ended.labels["outcome"] == "Abort"


def test_whoever_typed_the_run_gets_the_errors_themselves() -> None:
    for error in (Interrupted("stopped"), FolderInUse("in use"), StageStalled("stood still")):
        ended = run(raising(error), deployed=False)
        assert ended.labels["outcome"] == type(error).__name__
        assert not state_of(ended).is_scheduled()


def test_the_lock_of_a_run_raises_what_makes_another_run_wait(tmp_path: Path) -> None:
    def body() -> None:
        with run_lock(tmp_path), run_lock(tmp_path, wait_s=0.0):
            pass

    assert state_of(run(body)).name == "AwaitingFolder"


def test_a_stopped_stage_is_a_cancelled_task_without_a_traceback() -> None:
    states: list[State[Any]] = []

    @task
    def stage() -> State[None] | None:
        return cancelled_if_stopped(raising(Interrupted("train is saved at step 7")))

    def body() -> None:
        states.append(stage(return_state=True))
        go_on(stage())

    ended = run(body)
    assert states[0].is_cancelled()
    assert states[0].message == "train is saved at step 7"
    assert state_of(ended).name == "AwaitingRetry"
    assert "train is saved at step 7" in (state_of(ended).message or "")


def test_a_finished_stage_goes_on() -> None:
    assert cancelled_if_stopped(lambda: None) is None
    go_on(Completed())


def cancelled_on_the_server() -> None:
    """The body of a flow that is cancelled, and waits for the signal which tells it."""
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    set_state(Cancelling())
    wait_for(came.is_set)
    raise Interrupted("the training is saved")


def test_a_cancel_that_nobody_passes_on_reaches_the_run_as_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_state, "POLL_S", 0.05)
    assert state_of(run(cancelled_on_the_server)).is_cancelled()


def test_a_server_that_is_away_costs_one_warning_and_is_obeyed_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own_state, "POLL_S", 0.2)
    real = own_state.get_client
    tries: list[str] = []

    def away(**options: Any) -> Any:
        tries.append("")
        url = "http://127.0.0.1:9/api" if len(tries) < 4 else PREFECT_API_URL.value()
        with temporary_settings({PREFECT_API_URL: url}):
            return real(**options)

    monkeypatch.setattr(own_state, "get_client", away)

    assert state_of(run(cancelled_on_the_server)).is_cancelled()
    texts = [record.getMessage() for record in caplog.records if record.name == "selftrain.flows"]
    assert sum("it goes on" in text for text in texts) == 1
    assert sum("answers again" in text for text in texts) == 1


def test_an_end_is_reported_once_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "TRY_AGAIN_S", 0.01)
    real = ends.get_client
    tries: list[str] = []

    def away(**options: Any) -> Any:
        tries.append("")
        if len(tries) in (2, 3):
            raise httpx.ConnectError("nobody there")
        return real(**options)

    monkeypatch.setattr(ends, "get_client", away)
    assert state_of(run(raising(Interrupted("saved")))).name == "AwaitingRetry"
    assert len(tries) == 4  # the first one reads the deployment


def test_an_attempt_that_has_told_its_end_says_nothing_about_the_next_one() -> None:
    """What started the engine, such as srun, may end with an error long after it."""
    began = datetime.datetime.now(datetime.UTC)
    ended = run(raising(Interrupted("saved")))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(ended.id, Running(), force=True)
    state = ends.report_end(ended.id, "srun ended with exit code 9", 3, since=began)
    assert state is not None
    assert state.is_running()
    later = datetime.datetime.now(datetime.UTC)
    state = ends.report_end(ended.id, "srun ended with exit code 9", 3, since=later)
    assert state is not None
    assert (state.name, state.message) == ("AwaitingRetry", "srun ended with exit code 9. Start 2 of 3 anew")


def test_a_run_that_is_over_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_state, "POLL_S", 0.01)
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    assert state_of(run(lambda: None)).is_completed()
    assert not seen


def test_a_deployment_with_a_limit_of_its_own_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    @flow(name="limited")
    def limited() -> None:
        with obeying_its_run():
            pass

    with get_client(sync_client=True) as client:
        deployment_id = client.create_deployment(client.create_flow(limited), "limited", concurrency_limit=1)
        flow_run = client.create_flow_run_from_deployment(deployment_id, state=Pending())
        run_flow(limited, flow_run=flow_run)
    assert "limit the work pool" in caplog.text


def test_an_abort_of_the_flow_is_an_interruption_of_the_command() -> None:
    from flows.watch import watched

    with pytest.raises(Interrupted, match="the training is saved"):
        watched(raising(Abort("the training is saved")))


def test_a_call_of_the_server_is_made_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ends, "TRY_AGAIN_S", 0.0)
    answers = iter([httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), 7])

    def call() -> int:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert ends.when_it_answers("tag the run", call) == 7
    assert caplog.messages == ["cannot tag the run (ConnectError: refused); trying again"]
