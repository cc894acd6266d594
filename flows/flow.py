"""The self-training loop as a Prefect flow, with one task per stage.

Prefect only watches. The pipeline runs the loop, knows what is done already, and writes all outputs, so they are the
same bits with and without Prefect.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.artifacts import ProgressArtifact, show_rounds, show_table
from flows.ends import bars, cancelled_if_stopped, go_on, obeying_its_run
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import Mode
from pipeline.ablation.rows import table
from pipeline.config import Config
from pipeline.methods.round import Round
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job
from pipeline.stages.launch import run_job
from pipeline.stages.plugins import load_plugins
from pipeline.stages.progress import Progress

load_plugins()  # before a config is checked, which may name a method of theirs


@flow(name="self-train", persist_result=False)
def self_train(config: Config, run_dir: Path, accept_environment: bool = False) -> dict[str, Any]:
    """Train by the config's method, from labeled and unlabeled images to a final model that is measured on test once.

    It returns the content of result.json. A stopped run is resumed.
    """
    rounds: list[Round] = []

    def on_round(new: Round) -> None:
        rounds.append(new)
        show_rounds(rounds)

    with obeying_its_run(), bars() as show:

        def run_stage(job: Job, lock_fd: int) -> None:
            go_on(stage(job.title, job, lock_fd, show))

        return run_loop(config, run_dir, run_stage=run_stage, on_round=on_round, accept_environment=accept_environment)


@flow(name="ablate", persist_result=False)
def ablate(
    config: Config,
    out: Path,
    techniques: list[str],
    mode: Mode = "alone",
    num_seeds: int = 3,
    accept_environment: bool = False,
) -> str:
    """Run an ablation, which is one run per technique and seed; returns its table, which is also an artifact.

    A stopped ablation is resumed.
    """
    with obeying_its_run(), bars() as show:

        def run_stage(job: Job, lock_fd: int) -> None:
            go_on(stage(job.title, job, lock_fd, show))

        options: dict[str, Any] = {"run_stage": run_stage, "accept_environment": accept_environment}
        rows = run_ablation(config, out, techniques, mode, num_seeds, **options)
    show_table("ablation", table(rows))
    return table(rows)


@task(name="stage", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def stage(title: str, job: Job, lock_fd: int, show: Callable[[Progress], None]) -> State[None] | None:
    """Run one stage. The task is called directly, never submitted, because signals reach the main thread only."""
    artifact = ProgressArtifact(f"{job.kind}-progress")

    def on_progress(progress: Progress) -> None:
        show(progress)
        artifact.show(progress)

    return cancelled_if_stopped(lambda: run_job(job, lock_fd, on_progress=on_progress))
