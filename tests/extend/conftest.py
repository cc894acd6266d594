"""A reader of docs/extend.md at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.page import FILES
from support.plugins import forget, importing
from support.processes import run

from pipeline.demos.digits import pack_digits
from pipeline.stages import launch
from pipeline.stages.jobs import Job
from pipeline.stages.plugins import VARIABLE


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed digits of the page."""
    folder = tmp_path_factory.mktemp("extend") / "digits"
    pack_digits(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works: the files of the page beside the packed digits."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/digits").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setenv(VARIABLE, "")
    yield
    forget()


@pytest.fixture
def forks(children: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages of a command run in forks, which start sooner than its own children, and import the same files."""

    def in_a_fork(job: Job, lock_fd: int | None = None, **_: object) -> None:
        run(job, importing())

    monkeypatch.setattr(launch, "run_job", in_a_fork)
