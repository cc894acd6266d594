"""`make team` on a real server: a project with packages of our names, new images, their event, a run, and an end."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image
from support.command import ROOT, environment
from support.images import digit_files, write_files
from support.waiting import LIMIT_S, wait_for

from pipeline.demos.digits import pack_digits

pytestmark = [pytest.mark.slow, pytest.mark.process]

QUICK = ["teacher.steps=150", "student.steps=60", "student.batch_size=20", "rounds.num_rounds=1", "data.cache=never"]
QUICK += ["evaluate.control=false", "runtime.threads=1", "teacher.evaluations=1", "student.evaluations=1"]
THEIRS = '''
from prefect import flow

from pipeline.steps import number


@flow
def etl() -> int:
    """A flow of the project, which imports its own packages."""
    return number()
'''


def turned(files: dict[str, bytes]) -> dict[str, bytes]:
    """Images that are not in the data set, since they stand on their heads."""
    found = {}
    for name, data in files.items():
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_180).save(buffer, "PNG")
        found[name] = buffer.getvalue()
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The team's folder, which is a project with flows of its own, too."""
    folder = tmp_path / "project"
    files = {
        "flows/__init__.py": "",
        "flows/etl.py": THEIRS,
        "pipeline/__init__.py": "",
        "pipeline/steps.py": "def number() -> int:\n    return 7\n",
        "train.yaml": (ROOT / "configs/digits.yaml").read_text().replace("root: shards/digits", "root: shards"),
    }
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    ours = deployments["deployments"]
    ours[0]["parameters"] |= {"set": QUICK, "promote": "never"}
    ours[1]["parameters"] |= {"settle_s": 0.0}
    theirs = {"name": "etl", "entrypoint": "flows.etl.etl", "work_pool": {"name": "cpu"}}
    deployments["deployments"] = [ours[0], theirs, *ours[1:]]
    files["prefect.yaml"] = yaml.safe_dump(deployments)
    write_files(folder, {name: text.encode() for name, text in files.items()})
    pack_digits(folder / "shards")
    return folder


@pytest.fixture
def team(project: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command under way, and the address of its server."""
    command = [sys.executable, "-m", "flows.team", project, "--prefect-file", project / "prefect.yaml", "--port", "0"]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line.startswith("The UI is at "), line + process.stdout.read()
        yield process, line.split(";")[0].removeprefix("The UI is at ")
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)


def processes_of(project: Path) -> list[psutil.Process]:
    """Every process that was started for the team's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SELFTRAIN_TEAM") == str(project) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_new_images_start_a_run_beside_flows_of_the_project_and_ctrl_c_ends_it_all(
    project: Path, team: tuple[subprocess.Popen[str], str]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    process, url = team

    def start(deployment: str) -> Any:
        found = client.read_deployment_by_name(deployment)
        return client.create_flow_run_from_deployment(found.id)

    def ended(flow_run_id: Any) -> Any:
        state = client.read_flow_run(flow_run_id).state
        return state if state is not None and state.is_final() else None

    def triggered() -> list[Any]:
        training = client.read_deployment_by_name("self-train/self-train")
        runs = client.read_flow_runs(limit=100)
        return [run for run in runs if run.deployment_id == training.id]

    with temporary_settings({PREFECT_API_URL: f"{url}/api"}), get_client(sync_client=True) as client:
        theirs = start("etl/etl")
        write_files(project / "incoming", {**turned(digit_files(0, 20)), "torn.png": b"no image"})
        taking = start("intake/intake")
        state = wait_for(lambda: ended(taking.id), poll_s=1.0)
        assert state.message.endswith("20 new images in 1 shards, 1 bad files in quarantine"), state.message
        (run,) = wait_for(triggered, poll_s=1.0)
        assert run.parameters["config"] == str(project / "train.yaml")
        assert run.parameters["run_dir"] == str(project / "runs/main")
        assert wait_for(lambda: ended(run.id), poll_s=1.0).is_completed(), client.read_flow_run(run.id).state.message
        assert (project / "runs/main/result.json").exists()
        assert wait_for(lambda: ended(theirs.id), poll_s=1.0).is_completed()
    assert len(processes_of(project)) >= 3
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 0
    assert processes_of(project) == []
