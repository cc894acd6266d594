"""Two machines for a run: processes of one host, and hosts of two network namespaces; a lost one, and a resume."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from support import slurm
from support.command import finish, type_command
from support.processes import has_come_to, outputs, run, train_job
from support.ranks import run_ranks
from support.waiting import wait_for

from pipeline.config import Config, changed, dump_yaml
from pipeline.errors import Interrupted
from pipeline.runs.loop import run_loop
from pipeline.stages import signs
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import kind_of
from pipeline.stages.launch import run_job

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def small(digits: Config) -> Config:
    """A teacher and a student of 24 steps."""
    training = {"steps": 24, "evaluations": 2, "warmup_steps": 3}
    return changed(
        digits,
        teacher=changed(digits.teacher, **training),
        student=changed(digits.student, **training),
        evaluate=changed(digits.evaluate, control=False),
        runtime=changed(digits.runtime, checkpoint_every=5),
    )


def with_runtime(config: Config, **values: int) -> Config:
    return changed(config, runtime=changed(config.runtime, **values))


def of_run(folder: Path) -> dict[str, bytes]:
    """The bytes of a run but for those that say how it was typed."""
    found = outputs(folder)
    return {name: data for name, data in found.items() if not name.startswith(("nodes/", "config.yaml", "report.html"))}


def in_two_processes(job: Job, _lock: int) -> None:
    if kind_of(job).ranks:
        assert run_ranks(job) == [0, 0]
    else:
        run(job)


def lose(pid: int) -> None:
    """End a machine as a power cut does: all at once, so that none of its processes can tell of the others."""
    machine = psutil.Process(pid)
    machine.suspend()
    for process in (*machine.children(recursive=True), machine):
        process.kill()


def test_a_run_that_lost_a_machine_goes_on_under_srun_and_ends_with_the_bits_of_two_processes(
    small: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun is a stand-in, which says the same of ranks as the real one."""
    run_loop(with_runtime(small, processes=2), tmp_path / "whole", run_stage=in_two_processes)
    folder, config = tmp_path / "run", with_runtime(small, nodes=2)
    monkeypatch.setattr(signs, "LOST_S", 20.0)
    other = type_command("join", folder, cwd=tmp_path)

    def run_stage(job: Job, lock_fd: int) -> None:
        if job.title == "train student (round 1)":
            threading.Thread(target=lambda: wait_for(lambda: has_come_to(job, 10)) and lose(other.pid)).start()
        run_job(job, lock_fd)

    with pytest.raises(Interrupted, match=r"train student \(round 1\) was stopped: no sign of life came from "):
        run_loop(config, folder, run_stage=run_stage)
    code, out, _ = finish(other)
    assert code == -9
    assert "train student (round 1): machine 2 of 2" in out

    (tmp_path / "small.yaml").write_text(dump_yaml(config))
    command = "if [ $SLURM_NODEID = 0 ]; then exec selftrain run small.yaml --run-dir run --no-prefect; "
    command += "else exec selftrain join run; fi"
    path = slurm.install(tmp_path / "bin")
    code, out, err = finish(type_command(command=("srun", "--nodes=2", "sh", "-c", command), cwd=tmp_path, PATH=path))
    assert code == 0, out + err
    assert "train student (round 1) is finished" in out
    assert "train teacher" not in out
    assert of_run(folder) == of_run(tmp_path / "whole")


# -------------------------------------------------------------------------------------------------- network namespaces

HOSTS = ("selftrain-a", "selftrain-b")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them and no other way to each other, not even loopback."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here ({error})")
    try:
        ip("link", "add", "cable", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
        for number, host in enumerate(HOSTS, start=1):
            ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", host, "link", "set", link, "up")
            ip("-n", host, "route", "add", "default", "dev", "cable")
        yield
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)


def test_two_hosts_that_share_nothing_but_files_train_with_the_bits_of_two_processes(
    small: Config, hosts: None, tmp_path: Path
) -> None:
    training = changed(small.teacher, steps=6, evaluations=1)
    config = changed(small, teacher=training)
    whole = train_job(with_runtime(config, processes=2), tmp_path / "whole")
    assert run_ranks(whole) == [0, 0]
    (tmp_path / "two.yaml").write_text(dump_yaml(with_runtime(config, nodes=2)))
    start = partial(type_command, cwd=tmp_path)
    verbs = (("train", "two.yaml", "--out", "out"), ("join", "out"))
    on = [("ip", "netns", "exec", host, "selftrain") for host in HOSTS]
    path = slurm.install(tmp_path / "bin")
    commands = [start(*verb, command=command, PATH=path) for verb, command in zip(verbs, on, strict=True)]
    for code, out, err in map(finish, commands):
        assert code == 0, out + err
    assert of_run(tmp_path / "out") == of_run(whole.out)
