"""The flow `crash-zombie` ends a run that is Running and silent, and touches no other."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run_in() -> Callable[[Any], UUID]:
    """Makes a flow run in a state, whose process nobody has."""
    from prefect import flow
    from prefect.client.orchestration import get_client

    @flow(name="self-train")
    def gone() -> None:
        """Never called."""

    def make(state: Any) -> UUID:
        with get_client(sync_client=True) as client:
            made = client.create_flow_run(gone)
            client.set_flow_run_state(made.id, state, force=True)
            return UUID(str(made.id))

    return make


def after(flow_run: UUID, silent_s: float, listen_s: float = 0.0) -> Any:
    """The state of a run after the flow has looked at it."""
    from prefect.client.orchestration import get_client

    from flows.zombie import crash_zombie

    assert crash_zombie(f"prefect.flow-run.{flow_run}", silent_s, listen_s, return_state=True).is_completed()
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run).state


@pytest.mark.parametrize("name", ["Running", "Pending"])
def test_a_run_that_is_under_way_and_silent_is_crashed(run_in: Callable[[Any], UUID], name: str) -> None:
    from prefect import states

    state = after(run_in(getattr(states, name)()), silent_s=0.0)
    assert state.is_crashed()
    assert "no heartbeat for 0 s" in state.message


@pytest.mark.parametrize("name", ["AwaitingRetry", "Suspended", "Scheduled", "Cancelling", "Completed"])
def test_a_run_in_any_other_state_is_left_alone(run_in: Callable[[Any], UUID], name: str) -> None:
    from prefect import states

    given = getattr(states, name)
    arguments = {"timeout_seconds": 60} if name == "Suspended" else {}
    flow_run = run_in(given(**arguments))
    assert after(flow_run, silent_s=0.0).name == name


def test_a_run_that_has_just_begun_or_that_was_heard_is_left_alone(run_in: Callable[[Any], UUID]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource
    from prefect.states import Running

    from flows.events import emit
    from flows.zombie import HEARTBEAT, sign_of_life

    flow_run = run_in(Running())
    assert after(flow_run, silent_s=3600.0).is_running()
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run}"}
    sent = Event(event=HEARTBEAT, resource=Resource(resource))
    emit(sent)

    def is_recorded() -> bool:
        with get_client(sync_client=True) as client:
            about = {"event": {"name": [HEARTBEAT]}, "resource": {"id": list(resource.values())}}
            return bool(client.request("POST", "/events/filter", json={"filter": about}).json()["events"])

    wait_for(is_recorded, poll_s=0.1)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run).state
        assert state is not None
        between = state.timestamp + (sent.occurred - state.timestamp) / 2
        assert sign_of_life(client, flow_run, between) == "is alive"
        assert sign_of_life(client, flow_run, sent.occurred + datetime.timedelta(seconds=1)) is None


def test_a_run_that_is_heard_while_it_is_listened_to_is_left_alone(
    run_in: Callable[[Any], UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was away has heard of nobody for a while."""
    from prefect.states import Running

    from flows import zombie

    answers = iter([None, None, "is alive"])
    monkeypatch.setattr(zombie, "sign_of_life", lambda *_: next(answers))
    monkeypatch.setattr(zombie, "LOOK_S", 0.0)
    assert after(run_in(Running()), silent_s=0.0, listen_s=3600.0).is_running()
