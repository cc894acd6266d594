"""`make team` for real, on PostgreSQL where it is installed: images become a champion, and Ctrl-C ends it all.

The team's folder is a project that has packages with the names of ours.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml
from PIL import Image
from support.command import ROOT, environment, selftrain
from support.images import digit_files, write_files
from support.server import call
from support.team import HAS_POSTGRES, postgres, trains
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
    ours[0]["parameters"] |= {"set": QUICK}
    ours[1]["parameters"] |= {"settle_s": 0.0}
    del ours[1]["schedules"]  # the test says when
    theirs = {"name": "etl", "entrypoint": "flows.etl.etl", "work_pool": {"name": "cpu"}}
    deployments["deployments"] = [ours[0], theirs, *ours[1:]]
    files["prefect.yaml"] = yaml.safe_dump(deployments)
    write_files(folder, {name: text.encode() for name, text in files.items()})
    pack_digits(folder / "shards")
    return folder


@pytest.fixture
def impatient(project: Path) -> None:
    """Have the automation look after a run that was silent for 40 s; heartbeats come every 30 s, which is the least."""
    path = project / "prefect.yaml"
    deployments = yaml.safe_load(path.read_text())
    (zombie,) = [one for one in deployments["deployments"] if one["name"] == "crash-zombie"]
    zombie["parameters"] |= {"silent_s": 40, "listen_s": 35}
    zombie["triggers"][0]["within"] = 40
    path.write_text(yaml.safe_dump(deployments))


@dataclass
class Served:
    """What `make team` started, and what happens there."""

    process: subprocess.Popen[str]
    url: str

    def api(self, path: str, body: Any = None) -> Any:
        return call(f"{self.url}/api/{path}", body)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Post the form of a deployment; returns the id of the flow run."""
        found = self.api(f"deployments/name/{deployment}")
        return str(self.api(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def completed(self, flow_run_id: str) -> str:
        """Wait for the end of a flow run, which must be a good one; returns its message."""
        run = wait_for(lambda: self._ended(flow_run_id), poll_s=1.0)
        assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
        return str(run["state"]["message"])

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment, the earliest first."""
        found = self.api(f"deployments/name/{deployment}")
        which = {"deployments": {"id": {"any_": [found["id"]]}}, "sort": "START_TIME_ASC"}
        return list(self.api("flow_runs/filter", which))

    def verdict(self, flow_run_id: str) -> str:
        """The verdict of a run, as Markdown."""
        found = self.api("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}})
        (data,) = [artifact["data"] for artifact in found if artifact["key"].endswith("-verdict")]
        return str(data)

    def until(self, flow_run_id: str, state: str) -> None:
        wait_for(lambda: self.api(f"flow_runs/{flow_run_id}")["state"]["name"] == state, poll_s=1.0)

    def _ended(self, flow_run_id: str) -> Any:
        run = self.api(f"flow_runs/{flow_run_id}")
        return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


@pytest.fixture
def team(project: Path) -> Iterator[Served]:
    """The command under way."""
    command = [sys.executable, "-m", "flows.team", project, "--prefect-file", project / "prefect.yaml", "--port", "0"]
    with contextlib.ExitStack() as stack:
        database = {}
        if HAS_POSTGRES:
            database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(postgres())
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment(PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30", **database),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        stack.callback(process.communicate, timeout=LIMIT_S)
        stack.callback(process.terminate)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The UI is at "), line + process.stdout.read()
        yield Served(process, line.split(";")[0].removeprefix("The UI is at "))


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


def test_new_images_become_a_champion_and_ctrl_c_ends_it_all(project: Path, team: Served) -> None:
    """From images in the watched folder to an event, a run, its verdict, a promotion by a form, a challenger that is
    refused, a rollback, and the next images, which the champion labels."""
    theirs, registry = team.start("etl/etl"), project / "champions/main"

    # New images start a run by their event. What is no image is listed.
    write_files(project / "incoming", {**turned(digit_files(0, 20)), "torn.png": b"no image"})
    said = team.completed(team.start("intake/intake"))
    assert said.endswith("20 new images in 1 shards, 1 bad files in quarantine")
    assert "torn.png" in (project / "shards/quarantine.csv").read_text()
    (run,) = wait_for(lambda: team.runs("self-train/self-train"), poll_s=1.0)
    names = ("config", "run_dir")
    assert [run["parameters"][name] for name in names] == [str(project / "train.yaml"), str(project / "runs/main")]
    assert re.match(r"test \d\d\.\d%", team.completed(run["id"]))
    assert team.completed(theirs)  # a flow of the project, which has packages called as ours

    # The verdict links to the form of a promotion, filled in.
    link = urlsplit(re.findall(r"\]\((http\S+/run\?parameters=\S+)\)", team.verdict(run["id"]))[0])
    filled = json.loads(parse_qs(link.query)["parameters"][0])
    assert link.path.endswith(f"/{team.api('deployments/name/promote/promote')['id']}/run")
    assert team.completed(team.start("promote/promote", **filled)).endswith("is champion")
    first = json.loads((registry / "champion.json").read_text())

    # A challenger that learned for two steps is refused, by the flow and by the verb.
    hasty = {"run_dir": str(project / "runs/hasty"), "set": [*QUICK, "student.steps=2", "student.warmup_steps=0"]}
    said = team.completed(team.start("self-train/self-train", **hasty, promote="if better"))
    assert "v1" in said
    assert "stays champion" in said or "is the same model" in said
    (student,) = project.glob("runs/hasty/rounds/1/train-*")
    refused = selftrain("promote", student, "--to", registry, "--if-better", cwd=ROOT)
    assert "stays champion" in refused
    assert json.loads((registry / "champion.json").read_text()) == first

    # People may promote it all the same, and take that back.
    assert "v2" in team.completed(team.start("promote/promote", model=str(student), reason="to see it"))
    back = team.completed(team.start("promote/promote", reason="it sees nothing", rollback=True))
    assert "is champion again, in place of v2" in back

    # The next images are labeled by the champion, and by no other.
    write_files(project / "incoming", turned(digit_files(20, 30)))
    team.completed(team.start("intake/intake"))
    run = wait_for(lambda: team.runs("self-train/self-train")[2:], poll_s=1.0)[0]
    team.completed(run["id"])
    assert "teacher:v1" in team.api(f"flow_runs/{run['id']}")["tags"]

    assert len(processes_of(project)) >= 3
    team.process.send_signal(signal.SIGINT)
    assert team.process.wait(LIMIT_S) == 0
    assert processes_of(project) == []


@pytest.mark.usefixtures("impatient")
def test_a_run_whose_machine_is_lost_is_crashed_by_the_automation_and_no_other_run_is(
    project: Path, team: Served
) -> None:
    """Keeper and engine die, and the worker that started them says nothing. Another run waits for its hour."""
    run_dir, later = project / "runs/lost", {"scheduled_time": "2099-01-01T00:00:00Z"}
    longer = [*QUICK, "teacher.steps=20000"]
    run = team.start("self-train/self-train", run_dir=str(run_dir), set=longer, champion=None, promote="never")
    waits = team.start("promote/promote", model=str(run_dir))
    team.api(f"flow_runs/{waits}/set_state", {"state": {"type": "SCHEDULED", "state_details": later}, "force": True})
    wait_for(trains(run_dir, 20), poll_s=0.3)
    (worker,) = [one for one in processes_of(project) if {"worker", "gpu"} <= set(one.cmdline())]
    worker.suspend()
    for process in processes_of(project):
        if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
            process.kill()
    team.until(run, "Crashed")
    assert "no heartbeat for 75 s" in team.api(f"flow_runs/{run}")["state"]["message"]
    assert team.api(f"flow_runs/{waits}")["state"]["name"] == "Scheduled"
    worker.resume()
