"""Models, and a registry of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.champions import CLASSES
from support.saved import save_random

from pipeline.champions.promotion import promote


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [save_random(folder / f"{seed}.safetensors", CLASSES, seed=seed) for seed in range(3)]


@pytest.fixture
def registry(models: list[Path], tmp_path: Path) -> Path:
    """A registry with two champions."""
    for model in models[:2]:
        promote(model, tmp_path / "champions/birds", f"because of {model.stem}")
    return tmp_path / "champions/birds"
