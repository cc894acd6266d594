"""A run that is stopped, killed or cancelled on a real server and worker ends as it should, with undisturbed bits."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from support.team import SameBits, Team, trains
from support.waiting import wait_for

from pipeline.config import Config, changed
from pipeline.stages.lock import run_lock

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cancel_saves_leaves_no_process_and_a_retry_goes_on(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits, processes: int
) -> None:
    run_dir = tmp_path / "run"
    ranks = changed(config, runtime=changed(config.runtime, processes=processes))
    team.start_worker()
    run = team.train(ranks, run_dir)
    team.cancel(run)
    state = team.until(run, "Cancelled")
    assert state.type.value == "CANCELLED"
    wait_for(lambda: not team.processes(run_dir) + team.processes(), poll_s=0.3)
    (cancelled,) = [state for state in team.task_states(run) if not state.is_completed()]
    assert cancelled.is_cancelled(), cancelled
    assert "saved" in (cancelled.message or "")
    wait_for(lambda: b"Cancelled flow run" in team.log(-1), poll_s=0.3)  # the worker says so too, in its time
    team.retry(run)
    team.until(run, "Completed")
    same_bits(run_dir, processes)


def test_a_preempted_engine_saves_and_runs_again_by_itself(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(config, run_dir)
    team.engine(run).terminate()
    team.until(run, "Completed")
    assert team.history(run).count("AwaitingRetry") == 1
    assert {state.name for state in team.task_states(run)} == {"Completed", "Cancelled"}
    assert b"\r" not in team.log(-1), "log lines only, no bar"
    assert b"RuntimeWarning" not in team.log(-1)
    same_bits(run_dir)


def test_a_run_that_is_preempted_too_often_fails_and_a_retry_goes_on(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(config, run_dir, env={"SELFTRAIN_ATTEMPTS": "1"})
    team.engine(run).terminate()
    team.until_name(run, "AwaitingRetry")
    wait_for(lambda: team.state(run).is_running() and trains(run_dir, 200)(), poll_s=0.3)
    team.engine(run).terminate()
    assert "SELFTRAIN_ATTEMPTS=1" in (team.until(run, "Failed").message or "")
    team.retry(run)
    team.until_name(run, "Completed")
    same_bits(run_dir)


def test_a_killed_engine_runs_again_by_itself(team: Team, config: Config, tmp_path: Path, same_bits: SameBits) -> None:
    """As by the kernel for want of memory; its stage dies with it."""
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(config, run_dir, 220)
    team.engine(run).kill()
    team.until(run, "Completed")
    assert team.history(run).count("AwaitingRetry") == 1
    assert "Crashed" not in team.history(run)
    same_bits(run_dir)


def test_a_killed_engine_that_nobody_keeps_is_crashed_and_a_retry_goes_on(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    """A deployment without our command: Prefect's own end, from which the same run resumes."""
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(config, run_dir, 220, command=None)
    team.engine(run).kill()
    team.until(run, "Crashed")
    wait_for(lambda: team.log(-1).count(b"Check whether the flow run") == 2, poll_s=0.3)  # Prefect says it twice
    team.retry(run)
    team.until_name(run, "Completed")
    same_bits(run_dir)


def test_a_server_that_is_killed_and_comes_back_is_reported_to_and_obeyed(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(config, run_dir)
    team.kill_server()
    wait_for(lambda: list(run_dir.glob("rounds/1/label-*")), poll_s=0.3)  # it goes on without
    team.start_server()
    team.until(run, "Completed")
    same_bits(run_dir)


def test_a_cancel_after_the_server_came_back_is_obeyed(team: Team, config: Config, tmp_path: Path) -> None:
    """Prefect's worker has given up to pass it on by then, so the run has to see it."""
    run_dir = tmp_path / "run"
    team.start_worker()
    long = changed(config, teacher=changed(config.teacher, steps=20_000))
    run = team.train(long, run_dir)
    team.kill_server()
    wait_for(lambda: b"low run cancellation" in team.log(-1), poll_s=0.5)  # "... will fail"
    team.start_server()
    team.cancel(run)
    team.until(run, "Cancelled")
    wait_for(lambda: not team.processes(run_dir), poll_s=0.3)


def test_a_run_whose_folder_is_in_use_waits_and_frees_its_slot(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    """Another run uses it: here this process, whose use ends when the test says so."""
    run_dir = tmp_path / "run"
    team.start_worker()
    with run_lock(run_dir):
        run = team.run(config, run_dir)
        team.until_name(run, "AwaitingFolder")
        assert team.state(run).type.value != "FAILED"
        assert str(os.getpid()) in (team.message(run, "AwaitingFolder") or "")
        other = team.train(config, tmp_path / "other", 1)  # in the pool's one slot
        team.cancel(other)
        team.until(other, "Cancelled")
    team.retry(run)  # now, and not a minute later
    team.until_name(run, "Completed")
    same_bits(run_dir)


def test_a_training_that_stands_still_is_ended_and_retried(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.train(changed(config, runtime=changed(config.runtime, stall_minutes=1)), run_dir, 220)
    (training,) = team.processes(run_dir)
    training.suspend()  # it hangs
    team.until_name(run, "AwaitingRetry")
    assert "stood still" in (team.message(run, "AwaitingRetry") or "")
    team.until(run, "Completed")
    same_bits(run_dir)


def test_a_killed_worker_and_its_closed_pipes_do_not_end_the_run(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    worker = team.start_worker()
    run = team.train(config, run_dir)
    worker.kill()
    worker.wait()
    team.until(run, "Completed")
    assert team.history(run).count("Running") == 1
    same_bits(run_dir)


@pytest.mark.parametrize("everyone", [False, True])
def test_a_worker_that_stops_while_a_run_starts_leaves_it_to_the_next_worker(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits, everyone: bool
) -> None:
    """The flow has not begun, so nothing of it can report; a Pending run would hold its slot for ever."""
    run_dir = tmp_path / "run"
    worker = team.start_worker()
    run = team.run(config, run_dir)
    wait_for(lambda: len(team.processes()) > 1, poll_s=0.05)  # keeper and engine, which imports Prefect
    started = psutil.Process(worker.pid).children(recursive=True) if everyone else []
    for process in (worker, *started):
        process.terminate()
    worker.wait()
    team.until(run, "AwaitingRetry", "Scheduled")
    wait_for(lambda: not team.processes(), poll_s=0.3)
    team.start_worker()
    team.until(run, "Completed")
    same_bits(run_dir)


@pytest.mark.parametrize("everyone", [False, True])
def test_a_stopped_worker_leaves_a_run_that_the_next_worker_goes_on_with(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits, everyone: bool
) -> None:
    """As systemd restarts it, which signals all of its processes. The pool's one slot must be free again."""
    run_dir = tmp_path / "run"
    worker = team.start_worker()
    run = team.train(config, run_dir)
    started = psutil.Process(worker.pid).children(recursive=True) if everyone else []
    for process in (worker, *started):
        process.terminate()
    worker.wait()
    assert "saved" in (team.until(run, "AwaitingRetry").message or "")
    wait_for(lambda: not team.processes(run_dir), poll_s=0.3)
    team.start_worker()
    team.until(run, "Completed")
    assert team.history(run).count("AwaitingRetry") == 1
    same_bits(run_dir)
