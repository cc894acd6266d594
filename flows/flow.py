"""The self-training loop as a Prefect flow, with one task per stage.

Prefect only watches. The pipeline runs the loop, knows what is done already, and writes all outputs, so they are the
same bits with and without Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Completed

from flows.artifacts import (
    StageBar,
    never_fatal,
    result_message,
    show_rounds,
    show_selection,
    show_table,
    show_verdict,
)
from flows.body import run_body
from flows.edges import read_by
from flows.ends import bars, cancelled_if_stopped, go_on, when_it_answers
from flows.failure import failed_by_message
from flows.promote import find_promotion_link
from flows.run_name import run_name, tag_run, tags_of
from flows.succession import Promote, asked, champion_here, config_of, tag_of
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import Mode
from pipeline.ablation.rows import table
from pipeline.champions.promotion import promote
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.methods.round import Round
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job
from pipeline.stages.launch import run_job
from pipeline.stages.plugins import load_plugins
from pipeline.stages.progress import Progress

NONE: list[str] = []


@flow(name="self-train", flow_run_name=run_name, persist_result=False)
def self_train(
    config: str,
    run_dir: str,
    set: list[str] = NONE,
    champion: str | None = None,
    promote: Promote = "never",
    accept_environment: bool = False,
) -> dict[str, Any]:
    """Train by the config's method, from labeled and unlabeled images to a final model that is measured on test once.

    A run that was stopped goes on, and stages that are finished are reused.

    Args:
        config: The YAML file of the run, such as /work/birds.yaml. `selftrain init DATA` writes one.
        run_dir: The run folder, by its absolute path, such as /work/runs/birds. In a folder that has a run, it goes on.
        set: Changes of the config, one key.path=value per line, such as student.steps=20000.
        champion: A registry, such as /work/champions/birds. Its champion is the first teacher, and labels only the
            shards that it has not labeled in this run folder. Without a champion a teacher is trained.
        promote: Whether the result becomes champion. "if better" asks a paired test on val. "ask" leaves a link to a
            form in the verdict.
        accept_environment: Whether to go on with stages that another machine, or other versions, began. They would not
            end with the same bits.
    """
    folder, registry = Path(run_dir), Path(champion) if champion else None

    def run() -> Any:
        here = _flow_run()
        if here.deployment_id is not None:
            _check_absolute(run_dir=run_dir, champion=champion)
        load_plugins()  # before the config is checked, which may name a method of theirs
        teacher = champion_here(registry, promote, here.tags)
        settings = config_of(Path(config), set, teacher)
        tags = tags_of(settings)
        if teacher is None:
            with never_fatal("tag the run"):
                tag_run(tags)
        else:
            tags.append(tag_of(teacher))  # by which a retry finds its teacher
            when_it_answers("tag the run", lambda: tag_run(tags))
        rounds: list[Round] = []

        def on_round(new: Round) -> None:
            rounds.append(new)
            show_rounds(folder, rounds)

        with bars() as show:
            tasks = _Tasks(folder, show)
            result = run_loop(
                settings,
                folder,
                run_stage=tasks.run,
                on_round=on_round,
                on_reuse=tasks.reuse,
                accept_environment=accept_environment,
            )
        try:
            said = "" if registry is None else tasks.succeed(registry, promote)
        except UserError as error:
            show_verdict(folder, f"Not promoted: {error}")
            raise
        show_verdict(folder, said)
        if registry is not None and promote == "ask":
            said = "Its verdict asks whether it becomes champion"
        return Completed(message=". ".join(filter(None, [result_message(result), said])), data=result)

    return run_body(run)  # type: ignore[return-value]  # the caller gets the data of the state


@flow(name="ablate", persist_result=False)
def ablate(
    config: str,
    out: str,
    techniques: list[str],
    set: list[str] = NONE,
    mode: Mode = "alone",
    num_seeds: int = 3,
    accept_environment: bool = False,
) -> str:
    """Run an ablation, which is one run per technique and seed; its table is an artifact. A stopped one is resumed.

    Args:
        config: The YAML file of the runs.
        out: The output folder, by its absolute path.
        techniques: Names of docs/techniques.
        set: Changes of the config, one key.path=value per line.
        mode: How they are combined: each alone, all but one, or one more per cell.
        num_seeds: The number of seeds, from the config's on.
        accept_environment: Whether to go on with stages that another machine, or other versions, began.
    """
    folder = Path(out)

    def run() -> str:
        if _flow_run().deployment_id is not None:
            _check_absolute(out=out)
        load_plugins()
        settings = load_config(Path(config), set)
        with bars() as show:
            options: dict[str, Any] = {"run_stage": _Tasks(folder, show).run, "accept_environment": accept_environment}
            rows = run_ablation(settings, folder, techniques, mode, num_seeds, **options)
        show_table(folder, "ablation", table(rows))
        return table(rows)

    return run_body(run)  # type: ignore[return-value]  # the caller gets the error of a state


# --------------------------------------------------------------------------------------------------------------- tasks


@task(name="stage", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def stage(title: str, job: Job, lock_fd: int, show: Callable[[Progress], None]) -> Any:
    """Run one stage. The task is called directly, never submitted, because signals reach the main thread only."""
    run = partial(run_job, job, lock_fd, on_progress=show)
    return cancelled_if_stopped(partial(failed_by_message, run))


@task(name="reused", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def reused(title: str, folder: Path) -> State[None]:
    """Stand for a stage that was finished before."""
    return Completed(name="Reused", message=f"{folder} was finished before")


@task(name="promote", task_run_name="promote if better", cache_policy=NO_CACHE, persist_result=False)
def promotion(run_dir: Path, registry: Path, reason: str) -> Any:
    """Compare the result with the champion, and make it champion if it is better."""

    def run() -> State[str]:
        done = promote(run_dir, registry, reason, if_better=True)
        return Completed(name="Promoted" if done.changed else "Stays", message=str(done), data=str(done))

    return failed_by_message(run)


class _Tasks:
    """The tasks of a run. Each comes after those whose folders its stage reads, by which the UI draws its edges."""

    def __init__(self, run_dir: Path, show: Callable[[Progress], None]) -> None:
        self._run_dir, self._show = run_dir, show
        self._states: dict[Path, State[Any]] = {}

    def run(self, job: Job, lock_fd: int) -> None:
        """Run a stage in a task. It raises what the stage raises."""
        bar = StageBar(self._run_dir, job.title)

        def show(progress: Progress) -> None:
            self._show(progress)
            bar.show(progress)

        self._add(job, stage(job.title, job, lock_fd, show, wait_for=self._before(job), return_state=True))

    def reuse(self, job: Job) -> None:
        """Show a stage that is not run, unless this run has it already."""
        if job.out not in self._states:
            self._add(job, reused(job.title, job.out, wait_for=self._before(job), return_state=True))

    def succeed(self, registry: Path, how: Promote) -> str:
        """Promote the result, if that was asked for; returns what became of it.

        Raises:
            UserError: somebody edited the registry, or the two models cannot be compared.
        """
        here = _flow_run()
        reason = f"flow run {here.name} ({here.id})"
        if how == "never":
            return ""
        if how == "ask":
            link = None
            with never_fatal("find the form of the flow `promote`"):
                link = find_promotion_link(str(self._run_dir), str(registry), reason)
            return asked(link, self._run_dir, registry)
        last = list(self._states.values())[-1:]
        said: str = promotion(self._run_dir, registry, reason, wait_for=last, return_state=True).result()
        return said

    def _before(self, job: Job) -> Sequence[State[Any]]:
        return [self._states[folder] for folder in read_by(job, self._states)]

    def _add(self, job: Job, state: State[Any]) -> None:
        go_on(state)
        state.result()
        self._states[job.out] = state
        if job.kind == "select":
            show_selection(self._run_dir, job.out)


def _flow_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def _check_absolute(**paths: str | None) -> None:
    """Refuse relative folders under a worker. Raises UserError."""
    for name, path in paths.items():
        if path and not Path(path).is_absolute():
            raise UserError(
                f"{name} is {path!r}, but a worker runs this in a folder of its own, often a temporary one, where "
                f"nobody would find it again; give the absolute path, such as /work/{path}"
            )
