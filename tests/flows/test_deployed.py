"""A run of a deployment: its form is short and explained, and as it is it runs; nothing lands where nobody looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("prefect_server", "instant_stages")


def deploy(name: str, **parameters: Any) -> Any:
    """Deploy the flow; returns the id."""
    from flows.flow import self_train

    return self_train.to_deployment(name, parameters=parameters).apply()  # type: ignore[union-attr]


def start(deployment: Any, parameters: dict[str, Any]) -> Any:
    """Do what the form's button does, and then a worker; returns the flow run."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.flow import self_train

    with get_client(sync_client=True) as client:
        known = client.read_deployment(deployment)
        body = {"parameters": {**known.parameters, **parameters}, "enforce_parameter_schema": True}
        answer = client.request("POST", f"/deployments/{deployment}/create_flow_run", json=body)
        flow_run = client.read_flow_run(answer.json()["id"])
    run_flow(flow=self_train, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run.id)


def test_its_form_has_few_flat_fields_each_with_help() -> None:
    from flows.flow import self_train

    schema = self_train.parameters.model_dump()
    assert not schema["definitions"]
    assert list(schema["properties"]) == ["config", "run_dir", "set", "champion", "promote", "accept_environment"]
    assert schema["required"] == ["config", "run_dir"]
    for name, field in schema["properties"].items():
        assert len(field.get("description", "")) > 40, name
    assert schema["properties"]["promote"]["enum"] == ["never", "if better", "ask"]


@pytest.mark.parametrize("method", ["noisy_student", "meta"])
def test_a_form_that_is_posted_as_it_is_with_all_defaults_written_out_completes(tmp_path: Path, method: str) -> None:
    from flows.flow import self_train

    config = tmp_path / "birds.yaml"
    config.write_text(f"method: {method}\n")
    deployment = deploy(f"{method}-form", config=str(config), run_dir=str(tmp_path / "run"))
    fields = self_train.parameters.model_dump()["properties"]
    written_out = {name: field["default"] for name, field in fields.items() if "default" in field}
    assert set(written_out) == {"set", "champion", "promote", "accept_environment"}
    run = start(deployment, json.loads(json.dumps(written_out)))
    assert run.state.is_completed(), run.state.message
    assert {f"method:{method}"} < set(run.tags)


@pytest.mark.parametrize("key", ["run_dir", "champion"])
def test_a_relative_folder_is_refused_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "birds.yaml").write_text("seed: 5\n")
    paths = {"config": str(tmp_path / "birds.yaml"), "run_dir": str(tmp_path / "run"), key: "runs/birds"}
    run = start(deploy(f"relative-{key}", **paths), {})
    assert run.state.is_failed()
    assert run.state.message.startswith(f"{key} is 'runs/birds', but a worker runs this in a folder of its own")
    assert "give the absolute path, such as /work/runs/birds" in run.state.message
    assert [path.name for path in tmp_path.iterdir()] == ["birds.yaml"]
