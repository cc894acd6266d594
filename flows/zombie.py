"""The end of a flow run whose process is gone, of which Prefect would say for ever that it is Running.

An automation calls this flow for a run that sent no heartbeat for a while, or that never began. Prefect's own action
would crash whatever that run has become since, such as one that waits for its next attempt: its last heartbeat may be
later than the event of its new state. And a server that was away has heard of nobody. So the flow looks first, and then
listens for longer than heartbeats take.
"""

from __future__ import annotations

import datetime
import time
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed

HEARTBEAT = "prefect.flow-run.heartbeat"
LOOK_S = 5.0


@flow(name="crash-zombie", flow_run_name="{flow_run}", persist_result=False)
def crash_zombie(flow_run: str, silent_s: float = 540.0, listen_s: float = 200.0) -> State[None]:
    """Set a flow run to Crashed if it is Running or Pending and was silent for a while; leave any other one alone.

    Args:
        flow_run: The id of the run, with or without `prefect.flow-run.` before it.
        silent_s: For how many seconds it must have been silent; heartbeats come every 180 seconds by default.
        listen_s: For how many seconds more to wait for a heartbeat, since the server may have been away before.
    """
    run = UUID(flow_run.removeprefix("prefect.flow-run."))
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=silent_s)
    until = time.monotonic() + listen_s
    with get_client(sync_client=True) as client:
        while (alive := sign_of_life(client, run, since)) is None and time.monotonic() < until:
            time.sleep(LOOK_S)
        if alive is not None:
            return Completed(message=f"{run} {alive}; it is left alone")
        silence = f"no heartbeat for {silent_s + listen_s:g} s, so its process is gone"
        why = f"{silence}; run it again, and it goes on from what is saved"
        client.set_flow_run_state(run, Crashed(message=why))
    return Completed(message=f"{run}: {why}")


def sign_of_life(client: SyncPrefectClient, run: UUID, since: datetime.datetime) -> str | None:
    """Why a run is no zombie; None if it may be one: Running or Pending since before that time, and silent since.

    Raises:
        httpx.HTTPError: the server does not answer, or knows no such run.
    """
    state = client.read_flow_run(run).state
    if state is None or not (state.is_running() or state.is_pending()):
        return f"is {state.name if state else 'without a state'}"
    if state.timestamp > since:
        return "has just begun"
    heard = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
        "occurred": {"since": since.isoformat()},
    }
    events = client.request("POST", "/events/filter", json={"filter": heard}).json()["events"]
    return "is alive" if events else None
