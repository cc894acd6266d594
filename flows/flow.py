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
from prefect.states import Completed

from flows.artifacts import StageBar, result_message, show_rounds, show_selection, show_table, show_verdict
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import Mode
from pipeline.ablation.rows import table
from pipeline.config import Config
from pipeline.methods.round import Round
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job
from pipeline.stages.launch import run_job
from pipeline.stages.plugins import load_plugins
from pipeline.stages.progress import Progress, show_progress

load_plugins()  # before a config is checked, which may name a method of theirs


@flow(name="self-train", persist_result=False)
def self_train(config: Config, run_dir: Path, accept_environment: bool = False) -> dict[str, Any]:
    """Train by the config's method, from labeled and unlabeled images to a final model that is measured on test once.

    It returns the content of result.json, as the data of a final state that says the result. A stopped run is resumed.
    """
    rounds: list[Round] = []

    def on_round(new: Round) -> None:
        rounds.append(new)
        show_rounds(run_dir, rounds)

    with show_progress() as show:

        def run_stage(job: Job, lock_fd: int) -> None:
            watched_stage(run_dir, job, lock_fd, show)
            if job.kind == "select":
                show_selection(run_dir, job.out)

        options: dict[str, Any] = {"on_round": on_round, "accept_environment": accept_environment}
        result = run_loop(config, run_dir, run_stage=run_stage, **options)
    show_verdict(run_dir)
    return Completed(message=result_message(result), data=result)  # type: ignore[return-value]  # Prefect returns the data


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
    with show_progress() as show:

        def run_stage(job: Job, lock_fd: int) -> None:
            watched_stage(out, job, lock_fd, show)

        options: dict[str, Any] = {"run_stage": run_stage, "accept_environment": accept_environment}
        rows = run_ablation(config, out, techniques, mode, num_seeds, **options)
    show_table(out, "ablation", table(rows))
    return table(rows)


def watched_stage(run_dir: Path, job: Job, lock_fd: int, show: Callable[[Progress], None]) -> None:
    """Run one stage as a task, with its progress in the terminal and in the UI."""
    bar = StageBar(run_dir, job.title)

    def on_progress(progress: Progress) -> None:
        show(progress)
        bar.show(progress)

    stage(job.title, job, lock_fd, on_progress)


@task(name="stage", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def stage(title: str, job: Job, lock_fd: int, show: Callable[[Progress], None]) -> None:
    """Run one stage. The task is called directly, never submitted, because signals reach the main thread only."""
    run_job(job, lock_fd, on_progress=show)
