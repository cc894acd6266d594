"""What the tests on a GPU share: the device, jobs of every learner, a limit, and no state of Accelerate between two."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from support.learners import DEVICE, MakeJob, make_job

from pipeline.config import Config

LIMIT_S = 100
"""For one test, after which the process ends: a GPU is rarely at hand, and pytest-timeout may not be."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The machine of a GPU may have other versions of everything, whose warnings must not cost its minutes."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU; SELFTRAIN_GPU_TESTS_ON=cpu tries these tests on the CPU")
    return torch.device(DEVICE)


@pytest.fixture
def job_of(digits: Config, labels: Path, selection: Path) -> MakeJob:
    """Makes the job of a variant's training."""
    return partial(make_job, digits, labels, selection)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Accelerate has one state per process, which holds device and precision."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=DEVICE == "cuda")
    _forget()
    yield
    _forget()
    faulthandler.cancel_dump_traceback_later()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
