"""Guards of the pins: a fresh Prefect 3.8.8 does not start with FastAPI 0.151+, nor schedule with SQLAlchemy 2.1+.

A real `prefect server start`, as people run it: a cron deployment gets its runs, and the flow runs there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import fake_run
from support.command import environment, finish, type_command
from support.team import HAS_POSTGRES, free_port, postgres
from support.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.process


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.loads(response.read())


def answer(url: str, body: Any = None) -> Any:
    """What `call` returns, or None where nobody serves yet."""
    with contextlib.suppress(OSError):
        return call(url, body)


@contextlib.contextmanager
def prefect_server(home: Path, **variables: str) -> Iterator[dict[str, str]]:
    """`prefect server start` on a free port; yields the variables of its clients."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    of_clients = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        **variables,
    }
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with open(home / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, env=environment(**of_clients), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: server.poll() is not None or answer(f"{url}/health"), poll_s=0.3)
        assert server.poll() is None, (home / "server.log").read_text()
        yield of_clients
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


DEPLOY = """
    from flows.flow import self_train
    from prefect.deployments.runner import EntrypointType
    how = {"cron": "0 3 * * 0", "parameters": {"config": {}, "run_dir": "run"}}
    self_train.to_deployment("weekly", entrypoint_type=EntrypointType.MODULE_PATH, **how).apply()
"""


def check(variables: dict[str, str], folder: Path) -> None:
    """A cron deployment is scheduled, and `selftrain run` shows up as a completed flow run."""
    url = variables["PREFECT_API_URL"]
    deploy = [sys.executable, "-c", textwrap.dedent(DEPLOY)]
    subprocess.run(deploy, env=environment(**variables), check=True, capture_output=True, timeout=LIMIT_S)
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = wait_for(lambda: answer(f"{url}/flow_runs/filter", scheduled), poll_s=0.3)
    assert all(run["parameters"]["run_dir"] == "run" for run in runs)

    (folder / "birds.yaml").write_text("seed: 1\n")
    command = (sys.executable, fake_run.__file__, "0")
    code, out, err = finish(type_command("run", "birds.yaml", cwd=folder, command=command, **variables))
    assert code == 0, err
    assert "final model 75.00%" in out
    assert not (folder / "runs/birds/prefect").exists()  # no embedded server beside the user's
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    (run,) = call(f"{url}/flow_runs/filter", completed)
    assert run["parameters"]["config"]["seed"] == 1
    assert {a["key"] for a in call(f"{url}/artifacts/latest/filter", {})} >= {"leaderboard", "round-report"}


def test_a_fresh_server_schedules_and_runs_the_flow(tmp_path: Path) -> None:
    with prefect_server(tmp_path / "home") as variables:
        check(variables, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_POSTGRES, reason="Debian's postgresql is not installed, or setpriv to leave root")
def test_the_same_on_postgresql(tmp_path: Path) -> None:
    with (
        postgres() as url,
        prefect_server(tmp_path / "home", PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as variables,
    ):
        check(variables, tmp_path)
