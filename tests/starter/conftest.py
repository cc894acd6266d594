"""Packed folders of large and of small images, and measurements that are short."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.starter import packed

from pipeline.starter import speed


@pytest.fixture(autouse=True)
def _measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is plays no part here."""
    monkeypatch.setattr(speed, "_MEASURE_S", 0.01)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("photos"), 72)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("tiny"), 8)
