from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from support import fake_run
from support.run_folder import digits, finished_run, run
from support.waiting import LIMIT_S

from pipeline.stages import launch

__all__ = ["digits", "finished_run", "run"]


@pytest.fixture(scope="session")
def prefect_server(children: None) -> Iterator[None]:
    """Prefect's own test server, once a session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=int(LIMIT_S)):
        yield


@pytest.fixture
def instant_stages(fake_stages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """These stages without processes of their own."""
    from flows import flow

    monkeypatch.setattr(flow, "run_job", fake_run.finish_at_once)


@pytest.fixture
def fake_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow runs a loop of two fake stages, which end at once."""
    from flows import flow

    monkeypatch.setattr(flow, "run_loop", fake_run.fake_loop)
    monkeypatch.setattr(launch, "CHILD", (sys.executable, fake_run.__file__, "stage", "0.0"))
