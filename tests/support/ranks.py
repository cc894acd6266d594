"""A stage in two forked ranks."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.config import changed
from pipeline.stages.jobs import Job
from pipeline.stages.ranks import NODE_VARIABLE, STORE_VARIABLE, count_over_machines
from support.processes import has_come_to, start
from support.tiny_net import register
from support.waiting import wait_for


def in_two(job: Job, tmp_path: Path, name: str) -> Job:
    return changed(job, runtime=changed(job.runtime, processes=2), out=tmp_path / name)


def become_rank(rank: int, port: int) -> None:
    """What torchrun does."""
    register()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def become_machine(where: Path, number: int, _port: int) -> None:
    """What torchrun and the launcher do on one of two machines with one process each."""
    register()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "nowhere", NODE_VARIABLE: f"{number}/2", STORE_VARIABLE: str(where)}
    count_over_machines()


def run_ranks(
    job: Job,
    kill_at: int = 0,
    signum: int = signal.SIGKILL,
    *,
    rank: Callable[[int, int], None] = become_rank,
    signalled: tuple[int, ...] = (0, 1),
) -> list[int]:
    """Run a job in two forked ranks; returns their exit codes. With `kill_at`, signal some at the line of that step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start(job, partial(rank, number, port)) for number in range(2)]
    if kill_at:
        wait_for(lambda: has_come_to(job, kill_at) or not processes[0].is_alive())
        for process in (processes[number] for number in signalled):
            if process.pid and process.is_alive():
                os.kill(process.pid, signum)
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]
