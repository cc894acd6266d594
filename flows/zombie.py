"""The end of a flow run whose process is gone, of which Prefect would say for ever that it is Running.

An automation calls this flow for a run that sent no heartbeat for a while. Prefect's own action would crash whatever
that run has become since, such as one that waits for its next attempt: its last heartbeat may be later than the event
of its new state. So the flow looks first.
"""

from __future__ import annotations

import datetime
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed

HEARTBEAT = "prefect.flow-run.heartbeat"


@flow(name="crash-zombie", flow_run_name="{flow_run}", persist_result=False)
def crash_zombie(flow_run: str, silent_s: float = 540.0) -> State[None]:
    """Set a flow run to Crashed if it is Running and has sent no heartbeat for a while; leave any other one alone.

    Args:
        flow_run: The id of the run, with or without `prefect.flow-run.` before it.
        silent_s: For how many seconds it must have been silent; heartbeats come every 180 seconds by default.
    """
    name = flow_run.removeprefix("prefect.flow-run.")
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=silent_s)
    heard = {
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{name}"]},
        "occurred": {"since": since.isoformat()},
    }
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(name)).state
        if state is None or not state.is_running() or state.timestamp > since:
            return Completed(message=f"{name} is {state.name if state else 'without a state'}; it is left alone")
        if client.request("POST", "/events/filter", json={"filter": heard}).json()["events"]:
            return Completed(message=f"{name} is alive; it is left alone")
        why = (
            f"no heartbeat for {silent_s:g} s, so its process is gone; run it again, and it goes on from what is saved"
        )
        client.set_flow_run_state(UUID(name), Crashed(message=why))
    return Completed(message=f"{name}: {why}")
