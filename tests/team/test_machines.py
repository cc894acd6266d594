"""A run on two machines, which a worker starts by srun (a stand-in), loses one of them, and goes on by itself."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from support import slurm
from support.team import KEEPER, SameBits, Team
from support.waiting import wait_for

from pipeline.config import Config, changed

pytestmark = [pytest.mark.slow, pytest.mark.process]


def joined(run_dir: Path) -> psutil.Process | None:
    """The process that has joined a run as its second machine."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[-2:] == ["join", str(run_dir)]:
            return process
    return None


def test_a_run_that_loses_a_machine_under_srun_goes_on_by_itself_with_the_bits_of_two_processes(
    team: Team, config: Config, tmp_path: Path, same_bits: SameBits
) -> None:
    """srun ends with an error then, which must not make a Crashed run of one that awaits its retry."""
    run_dir, path = tmp_path / "run", slurm.install(tmp_path / "bin")
    engine = f"if [ $SLURM_NODEID = 0 ]; then exec {KEEPER}; else exec selftrain join {run_dir}; fi"
    machines = changed(config, runtime=changed(config.runtime, nodes=2))
    team.start_worker()
    run = team.train(machines, run_dir, command=f"{KEEPER} srun --nodes=2 sh -c '{engine}'", env={"PATH": path})
    other = wait_for(lambda: joined(run_dir))
    assert other is not None
    other.suspend()  # as by a power cut, it tells nobody
    for process in (*other.children(recursive=True), other):
        process.kill()
    team.until(run, "Completed")
    assert team.history(run).count("AwaitingRetry") == 1
    assert "Crashed" not in team.history(run)
    assert "no sign of life" in (team.message(run, "AwaitingRetry") or "")
    same_bits(run_dir, processes=2)
