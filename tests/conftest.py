"""What all tests share: one thread per process, their own cache, packed digits, a run small enough to kill often.

The trained stages are made once per session; tests read them and never write into them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "passive"  # before torch: idle OpenMP threads of many children must not spin
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["GIT_DIR"] = os.devnull  # a stage notes the checkout's commit, which may move between kill and resume

# A shell that starts the tests in the background has SIGINT ignored, by them and all that they start: Prefect's worker
# is deaf then.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.digits import digits_config
from support.object_store import ObjectStore, object_store
from support.processes import label_job, run, select_job, train_job

from pipeline.config import Config

os.fsync = lambda descriptor: None  # in this process, not in children: it helps in power cuts alone, and it is slow
# Nothing about time: the first call of a test imports and compiles, and the machine may be busy.
settings.register_profile("selftrain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("selftrain")


# ---------------------------------------------------------------------------------------------------------------- tiers

LIMIT_S, LIMITS_S = 600, {"process": 1800, "slow": 4 * 3600}
"""Seconds after which pytest-timeout, where it is installed, ends a test, by marker. They find what hangs, and are so
long that a machine with other work to do fails nothing."""
TOOLS = {"git", "fc-list"}
"""Programs that answer at once, which are no matter: Matplotlib asks for fonts once per session."""
_unmarked: list[str] = []
"""The running test, while it may start no process."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "children" in getattr(item, "fixturenames", ()):
            item.add_marker("process")
        if config.pluginmanager.hasplugin("timeout") and not item.get_closest_marker("timeout"):
            limits = [limit for name, limit in LIMITS_S.items() if item.get_closest_marker(name)]
            item.add_marker(pytest.mark.timeout(max(limits, default=LIMIT_S)))
    # Files with many real processes first: a slow file at the end would leave the other workers idle.
    slowness = Counter(item.path for item in items if item.get_closest_marker("process"))
    items.sort(key=lambda item: -slowness[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """So that `make test-fast` stays fast, a test that starts a process and does not say so fails."""
    may_start = item.get_closest_marker("process") or item.get_closest_marker("gpu")
    _unmarked[:] = [] if may_start else [item.nodeid]
    try:
        return (yield)
    finally:
        _unmarked.clear()


def _guard(owner: Any, name: str) -> None:
    start = getattr(owner, name)

    def guarded(*arguments: Any, **options: Any) -> Any:
        command = arguments[1:2] if owner is subprocess.Popen else ()
        if _unmarked and not (command and Path(command[0][0]).name in TOOLS):
            pytest.fail(f"{_unmarked[0]} starts a process: mark it `process`, or have its fixture ask for `children`")
        return start(*arguments, **options)

    setattr(owner, name, guarded)


for _owner, _name in ((subprocess.Popen, "__init__"), (BaseProcess, "start"), (os, "fork")):
    _guard(_owner, _name)


@pytest.fixture(scope="session")
def children() -> None:
    """Fixtures that start processes ask for this one, which marks the tests that use them."""


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache folder, for this process and its children."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Commands set the number of threads of their process, which is this one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Config:
    """A run on scikit-learn's digits."""
    return digits_config(tmp_path_factory.mktemp("digits") / "packed")


@pytest.fixture(scope="session")
def bucket(children: None) -> Iterator[ObjectStore]:
    """A local S3 with an empty bucket. Whoever stores something there takes a folder of its own."""
    with object_store() as store:
        yield store


@pytest.fixture(scope="session")
def teacher(digits: Config, children: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher."""
    return run(train_job(digits, tmp_path_factory.mktemp("stages") / "train-teacher"))


@pytest.fixture(scope="session")
def labels(digits: Config, teacher: Path) -> Path:
    """The teacher's labels."""
    return run(label_job(digits, teacher.parent / "label-0", teacher))


@pytest.fixture(scope="session")
def selection(digits: Config, labels: Path) -> Path:
    """A selection from them."""
    return run(select_job(digits, labels.parent / "select-0", labels))


@pytest.fixture(scope="session")
def student(digits: Config, selection: Path) -> Path:
    """A student that was never killed."""
    return run(train_job(digits, selection.parent / "train-student", selection=selection))
