from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.run_folder import digits, finished_run, run
from support.waiting import LIMIT_S

__all__ = ["digits", "finished_run", "run"]


@pytest.fixture(scope="session")
def prefect_server(children: None) -> Iterator[None]:
    """Prefect's own test server, once a session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=int(LIMIT_S)):
        yield
