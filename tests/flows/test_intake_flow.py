"""The flow `intake`: new images are told by an event, and nothing else is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.images import class_files, png, write_files
from support.waiting import wait_for

from pipeline.packing import intake as intake_module
from pipeline.packing.pack import pack
from pipeline.stages.lock import read_lock, run_lock

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A packed folder, a watched one with three new images, and where the run is to be."""
    pack(write_files(tmp_path / "images", class_files(2)), tmp_path / "birds", split="labeled")
    write_files(tmp_path / "incoming", {f"{number}.png": png(9000 + number) for number in range(3)})
    names = {"source": "incoming", "data": "birds", "config": "birds.yaml", "run_dir": "runs/birds"}
    return {name: str(tmp_path / path) for name, path in names.items()}


def take(folders: dict[str, str]) -> Any:
    """The final state of the flow."""
    from flows.intake import intake

    return intake(**folders, settle_s=0.0, return_state=True)


def events_of(data: str) -> list[dict[str, Any]]:
    """The events about a packed folder, the earliest first."""
    from prefect.client.orchestration import get_client

    about = {"event": {"name": ["selftrain.data.changed"]}, "resource": {"id": [f"selftrain.data.{data}"]}}
    with get_client(sync_client=True) as client:
        found: list[dict[str, Any]] = client.request("POST", "/events/filter", json={"filter": about}).json()["events"]
    return sorted(found, key=lambda event: event["occurred"])


def test_new_images_are_told_once_with_strings_only(folders: dict[str, str]) -> None:
    from prefect.client.orchestration import get_client

    state = take(folders)
    assert state.is_completed()
    assert state.message == f"{folders['data']}: 3 new images in 1 shards"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == "incoming to birds"
    (event,) = wait_for(lambda: events_of(folders["data"]), poll_s=0.1)
    wanted = {name: folders[name] for name in ("data", "config", "run_dir")}
    assert event["payload"] == {**wanted, "num_new": "3"}
    assert [one["prefect.resource.role"] for one in event["related"]] == ["flow-run"]
    assert take(folders).message == f"{folders['data']}: nothing new"
    write_files(Path(folders["source"]), {"more.png": png(9100)})
    take(folders)
    wait_for(lambda: len(events_of(folders["data"])) > 1, poll_s=0.1)
    assert [event["payload"]["num_new"] for event in events_of(folders["data"])] == ["3", "1"]


def test_images_of_which_the_server_did_not_hear_are_told_by_the_next_intake(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(event: object) -> None:
        raise httpx.ConnectError("gone")

    with monkeypatch.context() as patched:
        patched.setattr("flows.intake.emit", refuse)
        assert take(folders).is_failed()
    assert take(folders).message == f"{folders['data']}: nothing new"
    (event,) = wait_for(lambda: events_of(folders["data"]), poll_s=0.1)
    assert event["payload"]["num_new"] == "3"


def test_while_a_run_reads_the_flow_completes_as_waiting(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "run_lock", functools.partial(run_lock, wait_s=0))
    with read_lock(Path(folders["data"])):
        state = take(folders)
    assert (state.type.value, state.name) == ("COMPLETED", "Waiting")
    assert "is read by a run" in state.message
    assert events_of(folders["data"]) == []


def test_an_intake_that_cannot_be_is_a_failed_run_with_the_message(folders: dict[str, str]) -> None:
    state = take({**folders, "source": "/nowhere"})
    assert state.is_failed()
    assert state.message.startswith("/nowhere")
