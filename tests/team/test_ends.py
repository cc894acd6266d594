"""A run that is stopped, killed or cancelled on a real server and worker ends as it should, with undisturbed bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.team import Team, trains
from support.waiting import wait_for

from pipeline.config import Config, changed

pytestmark = [pytest.mark.slow, pytest.mark.process]

SameBits = Callable[[Path], None]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cancel_saves_leaves_no_process_and_a_retry_goes_on(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits, processes: int
) -> None:
    run_dir = tmp_path / "run"
    ranks = changed(config, runtime=changed(config.runtime, processes=processes))
    team.start_worker()
    run = team.run(ranks, run_dir)
    wait_for(trains(run_dir), poll_s=0.3)
    team.cancel(run)
    state = team.until(run, "Cancelled")
    assert state.type.value == "CANCELLED"
    wait_for(lambda: not team.processes(run_dir), poll_s=0.3)
    (task,) = wait_for(lambda: [task for task in team.tasks(run) if task.state and task.state.is_final()], poll_s=0.3)
    assert task.state is not None
    assert task.state.is_cancelled(), task.state
    assert "saved" in (task.state.message or "")
    team.retry(run)
    team.until_name(run, "Completed")
    if processes == 1:  # two ranks add in another order
        same_bits(run_dir)


def test_a_preempted_engine_saves_and_runs_again_by_itself(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    run_dir = tmp_path / "run"
    team.start_worker()
    run = team.run(config, run_dir)
    wait_for(trains(run_dir), poll_s=0.3)
    team.engine(run).terminate()
    team.until(run, "Completed")
    assert team.history(run).count("AwaitingRetry") == 1
    assert "Failed" not in {task.state_name for task in team.tasks(run)}
    same_bits(run_dir)
