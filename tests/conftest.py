"""What all tests share: one thread a process, their own cache, packed digits, a run small enough to kill often.

The trained stages are made once a session; tests read them and never write into them.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # before torch: idle OpenMP threads of many children must not spin
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["GIT_DIR"] = os.devnull  # a stage notes the checkout's commit, which may move between kill and resume

import pytest
from hypothesis import settings
from support.digits import digits_config
from support.processes import label_job, run, select_job, train_job

from pipeline.config import Config

settings.register_profile("selftrain", deadline=None)  # the first call of a test imports and compiles
settings.load_profile("selftrain")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache folder, for this process and its children."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Config:
    """A run on scikit-learn's digits."""
    return digits_config(tmp_path_factory.mktemp("digits") / "packed")


@pytest.fixture(scope="session")
def teacher(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
