"""One server, on PostgreSQL where it is installed, one pool and one undisturbed run for all tests of this folder."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import selftrain
from support.digits import digits_config
from support.processes import outputs
from support.team import HAS_POSTGRES, SameBits, Team, postgres
from support.waiting import wait_for

from pipeline.config import Config, changed, dump_yaml


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory, children: None) -> Iterator[Team]:
    """A running server and a pool of one slot; no worker."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres()) if HAS_POSTGRES else None
        team = Team(tmp_path_factory.mktemp("team"), database)
        stack.callback(team.close)
        team.start_server()
        team.set_up()
        yield team


@pytest.fixture(autouse=True)
def _nothing_left(team: Team) -> Iterator[None]:
    """After each test no worker and no run lives: a test that leaves one has failed."""
    yield
    team.stop_workers()
    team.limit_pool(1)
    wait_for(lambda: not team.processes(), poll_s=0.5)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that lasts long enough to disturb it."""
    small = digits_config(tmp_path_factory.mktemp("digits") / "packed")
    return changed(
        small,
        teacher=changed(small.teacher, steps=600, evaluations=2),
        evaluate=changed(small.evaluate, control=False),
    )


@pytest.fixture(scope="session")
def undisturbed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Gives the folder of a run in so many processes that nobody disturbed, without Prefect."""

    @functools.cache
    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        (folder / "digits.yaml").write_text(dump_yaml(config))
        setting = f"runtime.processes={processes}"
        selftrain("run", "digits.yaml", "--run-dir", "run", "--no-prefect", "--set", setting, cwd=folder)
        return folder / "run"

    return run


@pytest.fixture
def same_bits(undisturbed: Callable[[int], Path]) -> SameBits:
    """Compares with a run in so many processes, which add in another order than one."""

    def check(run_dir: Path, processes: int = 1) -> None:
        expected, found = outputs(undisturbed(processes)), outputs(run_dir)
        names = {name for name in expected if not name.endswith((".html", ".yaml"))}
        assert any(name.endswith("model.safetensors") for name in names)
        assert "result.json" in names
        different = [name for name in names if found.get(name) != expected[name]]
        assert not different

    return check
