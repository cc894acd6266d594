"""The self-training loop as a Prefect flow, one task a stage.

Prefect only watches: the loop, what is done already and what a stage writes are the pipeline's, so the outputs are the
same bits with and without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client

from flows.artifacts import ProgressArtifact, show_rounds
from pipeline.config import Config
from pipeline.errors import Interrupted, UserError
from pipeline.jobs import Job
from pipeline.launch import describe, run_job
from pipeline.loop import run_loop
from pipeline.progress import Progress, show_progress
from pipeline.run import RoundReport


class ServerGone(Exception):
    """Prefect's server stopped answering while the flow ran."""


@flow(name="self-train", persist_result=False)
def self_train(config: Config, run_dir: Path, accept_environment: bool = False) -> dict[str, Any]:
    """Train a teacher, label, select, train a student with noise, and again; returns the content of result.json.

    Goes on where a stopped run was.
    """
    return _run(config, run_dir, accept_environment)


@flow(name="meta-pseudo-labels", persist_result=False)
def meta_pseudo_labels(config: Config, run_dir: Path, accept_environment: bool = False) -> dict[str, Any]:
    """Train a teacher and its student together, with `method: uda` the teacher alone, or compare them on two moons;
    returns the content of result.json.

    Goes on where a stopped run was.
    """
    if config.method == "noisy_student":
        raise UserError("method is noisy_student, which is the flow self-train's; set it to meta, uda or two_moons")
    return _run(config, run_dir, accept_environment)


def _run(config: Config, run_dir: Path, accept_environment: bool) -> dict[str, Any]:
    rounds: list[RoundReport] = []

    def on_round(report: RoundReport) -> None:
        rounds.append(report)
        show_rounds(rounds)

    with show_progress() as show:

        def run_stage(job: Job, lock_fd: int) -> None:
            stage(describe(job), job, lock_fd, show)

        return run_loop(config, run_dir, run_stage=run_stage, on_round=on_round, accept_environment=accept_environment)


@task(name="stage", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def stage(title: str, job: Job, lock_fd: int, show: Callable[[Progress], None]) -> None:
    """Run one stage. Called directly, never submitted: signals reach the main thread only."""
    artifact = ProgressArtifact(f"{job.kind}-progress")

    def on_progress(progress: Progress) -> None:
        show(progress)
        artifact.show(progress)

    run_job(job, lock_fd, on_progress=on_progress)


def run_watched(config: Config, run_dir: Path, accept_environment: bool = False) -> dict[str, Any]:
    """Call the flow on the server of PREFECT_API_URL.

    Raises:
        UserError: no server answers at the beginning, or what the loop raises.
        Interrupted: what the loop raises.
        ServerGone: the server stopped answering later; whatever was finished by then is in the run folder.
    """
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        url = os.environ.get("PREFECT_API_URL")
        raise UserError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({problem}); start it, unset the variable to use the "
            "embedded one, or pass --no-prefect"
        )
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        for name in ("prefect.flow_runs", "prefect.task_runs"):  # they go to the server; whoever called us tells people
            logging.getLogger(name).propagate = False
        logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # it counts the events left to send at exit
    try:
        run = self_train if config.method == "noisy_student" else meta_pseudo_labels
        return run(config, run_dir, accept_environment)
    except httpx.HTTPError as error:
        for outcome in _chain(error):
            if isinstance(outcome, UserError | Interrupted):  # Prefect could not tell the server of it
                raise outcome from error
        raise ServerGone(str(error) or type(error).__name__) from error


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what was being handled when it was raised, and so on."""
    chain = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    return chain
