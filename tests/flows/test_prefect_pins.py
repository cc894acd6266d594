"""Guards of the pins: a fresh Prefect 3.8.8 does not start with FastAPI 0.151+, nor schedule with SQLAlchemy 2.1+.

A real `prefect server start`, as people run it: a cron deployment gets its runs, and the flow runs there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import fake_run
from support.command import environment, finish, type_command
from support.server import answer, call, free_port, prefect_server
from support.waiting import LIMIT_S, wait_for

from flows.artifacts import artifact_key

pytestmark = pytest.mark.process

POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))


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
    completed = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    (run,) = call(f"{url}/flow_runs/filter", completed)
    assert run["parameters"]["config"]["seed"] == 1
    assert run["state"]["message"].startswith("test 75.0%")
    keys = {artifact["key"] for artifact in call(f"{url}/artifacts/latest/filter", {})}
    assert artifact_key(folder / "runs/birds", "leaderboard") in keys


def test_a_fresh_server_schedules_and_runs_the_flow(tmp_path: Path) -> None:
    with prefect_server(tmp_path / "home") as variables:
        check(variables, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (POSTGRES / "initdb").exists(), reason="Debian's postgresql is not installed")
@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="needs setpriv to leave root")
def test_the_same_on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("postgres")
    unprivileged: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    data = Path(subprocess.check_output([*unprivileged, "mktemp", "-d", "/tmp/selftrain-pg-XXXXXX"], text=True).strip())
    port = free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    pg_ctl = [*unprivileged, str(POSTGRES / "pg_ctl"), "-D", str(data / "db")]
    initdb = [*unprivileged, str(POSTGRES / "initdb"), "-D", str(data / "db"), "-U", "prefect", "-A", "trust"]
    subprocess.run(initdb, check=True, capture_output=True)
    subprocess.run(
        [*pg_ctl, "-w", "-o", options, "-l", str(data / "log"), "start"], check=True, stdout=subprocess.DEVNULL
    )
    try:
        url = f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        with prefect_server(folder / "home", PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as variables:
            check(variables, folder)
    finally:
        subprocess.run([*pg_ctl, "-m", "fast", "-w", "stop"], check=True, capture_output=True)
        shutil.rmtree(data)
