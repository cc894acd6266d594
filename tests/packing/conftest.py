from __future__ import annotations

from pathlib import Path

import pytest
from support.images import class_files, write_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of 3 class folders with 20 images each."""
    return write_files(tmp_path / "source", class_files(20))
