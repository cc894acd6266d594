"""The event that says that a packed folder has new images. The deployment of `self-train` is triggered by it."""

from __future__ import annotations

from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.events import Event, RelatedResource, Resource
from prefect.runtime import flow_run

DATA_CHANGED = "selftrain.data.changed"


def data_changed(data: Path, num_new: int, config: Path, run_dir: Path) -> Event:
    """The event, whose payload has strings only: a trigger puts them into the parameters of a run as they are."""
    payload = {"data": str(data), "num_new": str(num_new), "config": str(config), "run_dir": str(run_dir)}
    resource = {"prefect.resource.id": f"selftrain.data.{data}", "prefect.resource.name": data.name}
    run = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"}
    related = [RelatedResource(run)] if flow_run.id else []
    return Event(event=DATA_CHANGED, resource=Resource(resource), related=related, payload=payload)


def emit(event: Event) -> None:
    """Send an event and wait until the server has it, unlike Prefect's `emit_event`, which may lose it at a kill.

    Raises:
        httpx.HTTPError: the server did not take it.
    """
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json")]).raise_for_status()
