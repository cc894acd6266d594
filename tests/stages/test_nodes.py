"""Several machines for one stage: who is called, what becomes of it, and what their processes are told."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.parents import script
from support.waiting import wait_for

from pipeline.ablation.ablate import run_ablation
from pipeline.config import Config, Data, Label, Runtime, changed, semantic
from pipeline.errors import Interrupted, UserError
from pipeline.files import write_json
from pipeline.runs.folder import resolve_config
from pipeline.stages import follower, launch, nodes, signs
from pipeline.stages.environment import child_variables
from pipeline.stages.interface import Interface, interface
from pipeline.stages.jobs import LabelJob
from pipeline.stages.launch import StageFailed, run_job
from pipeline.stages.machine import environment
from pipeline.stages.nodes import CALL, NODES, Call, Others, leading, others
from pipeline.stages.part import Part
from pipeline.stages.progress import Progress
from pipeline.stages.ranks import count_over_machines


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "BEAT_S", 0.001)
    for module in (nodes, follower):
        monkeypatch.setattr(module, "POLL_S", 0.001)


@pytest.fixture
def job(tmp_path: Path) -> LabelJob:
    runtime = Runtime(device="cpu", threads=1, nodes=2)
    return LabelJob(out=tmp_path / "label-0", round=1, data=Data(), label=Label(), runtime=runtime, teachers=())


# ------------------------------------------------------------------------------------------------------------- numbers


def test_two_machines_of_one_process_are_two_processes_of_one_machine() -> None:
    one, two = Config(runtime=Runtime(device="cpu", processes=2)), Config(runtime=Runtime(device="cpu", nodes=2))
    assert environment(one.runtime) == environment(two.runtime)
    assert semantic(two) == semantic(one) != semantic(Config(runtime=Runtime(device="cpu")))
    began = resolve_config(changed(one, runtime=changed(one.runtime, threads=7)), None)
    assert resolve_config(two, began).runtime.threads == 7  # another number of threads would give other bits


@pytest.mark.parametrize(("place", "rank"), [("0/2", "1"), ("1/2", "4"), (None, "1")])
def test_ranks_are_counted_over_machines(place: str | None, rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    if place:
        monkeypatch.setenv("SELFTRAIN_NODE", place)
    count_over_machines()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (rank, "6" if place else "3")


def test_a_stage_hears_nothing_of_the_ranks_of_srun_and_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate would take one process for one of two, and wait for the other."""
    told = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "PMI_SIZE",
        "PMI_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "PET_NNODES",
    )
    for name in (*told, "SLURM_JOB_ID", "RANKING", "OMP_X"):
        monkeypatch.setenv(name, "told by srun")
    passed = {name for name, value in child_variables({}).items() if value == "told by srun"}
    assert passed == {"SLURM_JOB_ID", "RANKING", "OMP_X"}


Address = namedtuple("Address", "family address")


@pytest.mark.parametrize(
    ("named", "of_name", "of_route", "found"),
    [
        ("ib0,eth0", "10.0.0.1", "10.0.0.1", Interface("ib0", "10.9.0.1")),
        ("", "10.0.0.1", "10.9.0.1", Interface("eth0", "10.0.0.1")),
        ("", "127.0.1.1", "10.9.0.1", Interface("ib0", "10.9.0.1")),
        ("", "127.0.1.1", "127.0.0.1", Interface("lo", "127.0.0.1")),
    ],
)
def test_the_interface_is_the_one_that_others_reach(
    named: str, of_name: str, of_route: str, found: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"lo": "127.0.0.1", "eth0": "10.0.0.1", "ib0": "10.9.0.1"}
    addresses = {name: [Address(socket.AF_INET, address)] for name, address in there.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    monkeypatch.setattr("pipeline.stages.interface._of_name", lambda: of_name)
    monkeypatch.setattr("pipeline.stages.interface._of_route", lambda: of_route)
    assert interface() == found


def test_some_interface_is_found_here() -> None:
    assert interface().name in psutil.net_if_addrs()


# ------------------------------------------------------------------------------------------------------------- meeting


def test_a_command_waits_for_machines_and_says_what_to_type(
    job: LabelJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Progress] = []
    (tmp_path / NODES / "dead").mkdir(parents=True)
    (tmp_path / NODES / "dead" / "sign.json").write_text('{"at": 1}')
    with (
        leading(tmp_path, 2),
        pytest.raises(Interrupted, match=r"1 of 2 machines are there; type `selftrain join \S+`"),
        others(job, stop=lambda: len(shown) > 5, on_progress=shown.append),
    ):
        pass
    assert shown[0].text == "waiting for the others"
    monkeypatch.setattr(nodes, "WAIT_S", 0.0)
    with leading(tmp_path, 2), pytest.raises(Interrupted, match="did not begin"), others(job):
        pass
    assert not (tmp_path / NODES / CALL).exists()


def test_a_part_of_a_labeling_needs_no_other_machine(job: LabelJob) -> None:
    assert job.of_part(Part(1, 2)).runtime.nodes == 1


def test_the_cells_of_an_ablation_are_of_one_machine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`runtime\.nodes`"):
        run_ablation(
            Config(runtime=Runtime(nodes=2)), tmp_path / "out", ["ema"], "alone", 1, run_stage=lambda job, lock: None
        )
    assert not (tmp_path / "out").exists()


def test_a_stage_that_nobody_leads_is_of_one_machine(job: LabelJob) -> None:
    with pytest.raises(UserError, match=r"`runtime\.nodes`: no other machine can take part"), others(job):
        pass


def test_a_stage_of_one_rank_calls_nobody(job: LabelJob, tmp_path: Path) -> None:
    one = changed(job, runtime=changed(job.runtime, nodes=1))
    with leading(tmp_path, 1), others(one) as alone:
        assert (alone.variables, alone.is_broken()) == ({}, False)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_leaves_when_nobody_leads_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "WAIT_S", 0.0)
    with pytest.raises(Interrupted, match=r"no command with runtime\.nodes above 1 has run in"):
        follower.join(tmp_path / "typo", lambda _: None)
    assert not (tmp_path / "typo").exists()


def test_a_call_may_be_taken_back_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / CALL, {"id": "c", "job": "", "numbers": {}})
    assert follower._call(tmp_path) == {"id": "c", "job": "", "numbers": {}}
    monkeypatch.setattr(Path, "exists", lambda path: path.name == CALL or os.path.exists(path))
    (tmp_path / CALL).unlink()
    assert follower._call(tmp_path) is None
    (tmp_path / CALL).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        follower._call(tmp_path)


def test_the_call_of_a_command_that_was_killed_is_taken_back(tmp_path: Path) -> None:
    write_json(tmp_path / NODES / CALL, {"id": "c", "job": "", "numbers": {"b": 1}})
    with leading(tmp_path, 2):
        assert not (tmp_path / NODES / CALL).exists()


# ------------------------------------------------------------------------------------------------------------ outcomes

FAILED, STOPPED, BAD, SAVED = StageFailed("lost a peer"), Interrupted("killed"), UserError("ours"), Interrupted("saved")


@pytest.mark.parametrize(
    ("own", "theirs", "said"),
    [
        (FAILED, {"call": "c", "code": 0, "message": ""}, FAILED),
        (FAILED, {"call": "c", "code": 1, "message": "no memory"}, StageFailed("lost a peer\non b: no memory")),
        (FAILED, {"call": "c", "code": 2, "message": "no data"}, UserError("on b: no data")),
        (FAILED, {"call": "c", "code": 75, "message": "saved"}, Interrupted("label was stopped on b: saved; the same")),
        (FAILED, {"call": "before", "code": 0, "message": ""}, Interrupted("no sign of life came from b; the same")),
        (STOPPED, {"busy": True}, Interrupted("no sign of life came from b")),
        (STOPPED, {"call": "c", "code": 1, "message": "no memory"}, StageFailed("killed\non b: no memory")),
        (SAVED, {"call": "c", "code": 75, "message": ""}, SAVED),
        (BAD, {"call": "c", "code": 0, "message": ""}, BAD),
        (BAD, {"call": "c", "code": 1, "message": "lost a peer"}, BAD),
    ],
)
def test_the_outcome_of_a_stage_is_that_of_all_its_machines(
    own: BaseException, theirs: dict[str, object], said: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sign.json").write_text(json.dumps({"at": 1, **theirs}))
    stage = Others("label", tmp_path, Call(id="c", job="", numbers={"b": 1}))
    lost = "call" not in theirs or theirs["call"] != "c"
    monkeypatch.setattr(signs, "LOST_S", -1.0 if lost else 3600.0)
    assert stage.is_broken() == (lost or theirs["code"] != 0)
    found = stage.explain(own)
    assert type(found) is type(said)
    assert str(said) in str(found)


# --------------------------------------------------------------------------------------------------------- the launcher

CHILD = """
    import json, pathlib, sys, time
    from pipeline.stages.owner import die_with_parent
    import signal
    die_with_parent(signal.SIGKILL)
    node = os.environ["SELFTRAIN_NODE"]
    here = pathlib.Path(sys.argv[1]).parent
    work = pathlib.Path(json.loads((here / "job.json").read_text())["out"])
    (work / f"began-{node[0]}").touch()
    while not (work / "began-0").exists() or not (work / "began-1").exists():
        time.sleep(0.01)
"""


@pytest.fixture
def machine(job: LabelJob, tmp_path: Path) -> Iterator[list[str]]:
    """A second machine, as a thread; what it told people."""
    told: list[str] = []

    def run() -> None:
        try:
            follower.join(tmp_path, told.append)
        except Interrupted as error:
            told.append(str(error))

    thread = threading.Thread(target=run)
    with leading(tmp_path, 2):
        thread.start()
        yield told
    thread.join()


def two_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    command = tuple(script(tmp_path, CHILD + code, "child.py"))
    for module in (launch, follower):
        monkeypatch.setattr(module, "CHILD", command)


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "outcome", "told"),
    [
        ("", None, "is finished"),
        ("    sys.exit(75 if node == '1/2' else 1)", Interrupted, "stopped and is saved"),  # by its scheduler
        ("    (here / 'error.json').write_text('{\"message\": \"no GPU\"}')\n    sys.exit(2)", UserError, "no GPU"),
        ("    time.sleep(3600 * (node == '0/2'))\n    sys.exit(1)", StageFailed, "exit code 1"),
        ("    time.sleep(3600 * (node == '1/2'))\n    sys.exit(node == '0/2')", StageFailed, "was ended"),  # it labels
    ],
)
def test_both_machines_end_a_stage_together(
    code: str,
    outcome: type[BaseException] | None,
    told: str,
    job: LabelJob,
    machine: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "PATIENCE_S", 0.1 if "'1/2'))" in code else 60.0)
    two_machines(monkeypatch, tmp_path, code)
    if outcome is None:
        run_job(job)
    else:
        with pytest.raises(outcome):
            run_job(job)
    wait_for(lambda: any(told in line for line in machine))
    assert "machine 2 of 2" in machine[2]
    assert not list((tmp_path / NODES).glob("*store*"))
    assert not (tmp_path / NODES / CALL).exists()
