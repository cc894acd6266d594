"""A run of three rounds."""

from __future__ import annotations

import pytest
from support.fake_stages import with_section

from pipeline.config import Config


@pytest.fixture
def config(digits: Config) -> Config:
    """The digits, for three rounds."""
    return with_section(digits, "rounds", num_rounds=3)
