"""Guards of the pins: a fresh Prefect 3.8.8 does not start with FastAPI 0.151+, nor schedule with SQLAlchemy 2.1+.

A real `prefect server start`, as people run it: a cron deployment gets its runs, and the flow runs there.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import fake_run
from support.command import environment, finish, type_command
from support.server import answer, call, prefect_server
from support.team import HAS_POSTGRES, postgres
from support.waiting import LIMIT_S, wait_for

from flows.artifacts import artifact_key

pytestmark = pytest.mark.process


DEPLOY = """
    from flows.flow import self_train
    from prefect.deployments.runner import EntrypointType
    how = {"cron": "0 3 * * 0", "parameters": {"config": "birds.yaml", "run_dir": "run"}}
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
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    (run,) = call(f"{url}/flow_runs/filter", completed)
    assert run["parameters"]["config"] == "birds.yaml"
    assert run["state"]["message"].startswith("test 75.0%")
    keys = {artifact["key"] for artifact in call(f"{url}/artifacts/latest/filter", {})}
    assert artifact_key(folder / "runs/birds", "leaderboard") in keys


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
