"""prefect.yaml and deploy/: every name in them is there, and what they fill in fits."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import prefect.settings
import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events import EventTrigger
from prefect.exceptions import PrefectHTTPStatusError
from support.command import ROOT
from support.waiting import wait_for

import selftrain
from flows import events, team
from flows.intake import intake

DEPLOY = ROOT / "deploy"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
TEAM = "{{ $SELFTRAIN_TEAM }}"
each = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["name"])


def flow_of(deployment: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = deployment["entrypoint"].rpartition(".")
    found: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return found


def triggers_of(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    return deployment.get("triggers", [])


def test_every_flow_that_others_load_is_deployed() -> None:
    assert {one["entrypoint"] for one in DEPLOYMENTS} == {f"selftrain.{name}" for name in selftrain.FLOWS}


@each
def test_the_entrypoint_is_a_flow_and_takes_these_parameters(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    given = dict(deployment["parameters"])
    assert flow.name == deployment["name"]
    takes = inspect.signature(flow.fn).parameters
    for trigger in triggers_of(deployment):
        assert trigger["parameters"].keys() <= takes.keys()
    assert given.keys() <= takes.keys()


@each
def test_what_nobody_fills_in_by_hand_starts_with_what_the_file_gives(deployment: dict[str, Any]) -> None:
    """`promote` needs a person or a link, and the rest runs by itself."""
    flow = flow_of(deployment)
    by_itself = [one.get("parameters", {}) for one in (*triggers_of(deployment), *deployment.get("schedules", []))]
    for more in by_itself:
        filled = {**deployment["parameters"], **more}
        flow.validate_parameters(filled)
        required = [n for n, p in inspect.signature(flow.fn).parameters.items() if p.default is inspect.Parameter.empty]
        assert set(required) <= filled.keys()


@each
def test_every_run_is_kept_so_that_what_is_stopped_says_so(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["job_variables"]["command"] == "selftrain-engine"


def test_the_automations_of_silent_runs_look_after_our_flows_alone() -> None:
    (zombie,) = [one for one in DEPLOYMENTS if one["name"] == "crash-zombie"]
    for trigger in triggers_of(zombie):
        assert set(trigger["match_related"]["prefect.resource.name"]) == {one["name"] for one in DEPLOYMENTS}
    assert zombie["parameters"]["listen_s"] > 180  # between two heartbeats


@each
def test_every_folder_is_absolute(deployment: dict[str, Any]) -> None:
    paths = [value for value in deployment["parameters"].values() if isinstance(value, str) and "/" in value]
    assert all(value.startswith(f"{TEAM}/") for value in paths)


@each
def test_every_pool_is_one_that_the_team_has(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["name"] in team.POOLS


@each
def test_the_triggers_are_such_as_prefect_takes(deployment: dict[str, Any]) -> None:
    for trigger in triggers_of(deployment):
        fields = {name: value for name, value in trigger.items() if name not in ("type", "enabled", "parameters")}
        EventTrigger.model_validate(fields)


def test_the_training_is_triggered_by_the_event_of_the_intake_whose_strings_are_its_parameters() -> None:
    training, taking = DEPLOYMENTS[:2]
    (trigger,) = training["triggers"]
    assert trigger["expect"] == [events.DATA_CHANGED]
    event = events.data_changed(Path("/team/shards"), 3, Path("/team/train.yaml"), Path("/team/runs/main"))
    assert all(type(value) is str for value in event.payload.values())
    assert event.resource.id.startswith(trigger["match"]["prefect.resource.id"].rstrip("*"))
    for name, template in trigger["parameters"].items():
        key = re.fullmatch(r"\{\{ event\.payload\.(\w+) \}\}", template)
        assert key is not None
        assert key[1] in event.payload
        assert training["parameters"][name] == taking["parameters"][name]
    assert flow_of(taking) is intake


def test_the_template_for_kubernetes_uses_each_of_its_variables_and_no_other() -> None:
    template = json.loads((DEPLOY / "kubernetes.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    container = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["{{ folder }}", "/dev/shm"]


@pytest.mark.usefixtures("prefect_server")
def test_a_server_takes_the_template_for_kubernetes_and_checks_its_variables() -> None:
    template = json.loads((DEPLOY / "kubernetes.json").read_text())
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="pods", type="kubernetes", base_job_template=template))
        flow_id = client.create_flow_from_name("self-train")
        client.create_deployment(flow_id, "taken", work_pool_name="pods", job_variables={"gpus": 4, "memory": "64Gi"})
        with pytest.raises(PrefectHTTPStatusError, match="four"):
            client.create_deployment(flow_id, "refused", work_pool_name="pods", job_variables={"gpus": "four"})


def test_the_settings_of_the_server_are_known_to_prefect() -> None:
    lines = (DEPLOY / "server.env").read_text().splitlines()
    names = [line.lstrip("#").partition("=")[0] for line in lines if re.match(r"#?[A-Z_]+=", line)]
    assert len(names) > 8
    assert [name for name in names if name.startswith("PREFECT_") and not hasattr(prefect.settings, name)] == []


def test_files_that_the_deployment_names_are_there() -> None:
    assert os.access(DEPLOY / "drain.sh", os.X_OK)
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert all((ROOT / name).exists() for line in copied for name in shlex.split(line))


@pytest.mark.process
def test_a_worker_is_drained_when_its_last_run_has_ended(tmp_path: Path) -> None:
    """The script waits for children that run flows, and for no others."""
    said, stub = tmp_path / "said", tmp_path / "bin" / "prefect"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >{said}\n')
    stub.chmod(0o755)
    worker = subprocess.Popen(
        ["sh", "-c", "sleep 3600 & sh -c 'echo up; read line; : bin/selftrain-engine'; echo done; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == "up\n"
        path = f"{stub.parent}:{os.environ['PATH']}"
        drain = subprocess.Popen([DEPLOY / "drain.sh", "gpu", str(worker.pid)], env={**os.environ, "PATH": path})
        wait_for(lambda: said.exists() and said.read_text() == "work-pool pause gpu\n")
        with pytest.raises(subprocess.TimeoutExpired):
            drain.wait(0.5)
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "done\n"
        assert drain.wait() == 0
        assert worker.poll() is None
    finally:
        os.killpg(worker.pid, 9)
        worker.communicate()
