"""docs/config.md is what the models say."""

from __future__ import annotations

from pathlib import Path

import pipeline
from pipeline.config.reference import reference

PAGE = Path(pipeline.__file__).parents[1] / "docs" / "config.md"


def test_the_page_of_config_keys_is_generated_from_the_models() -> None:
    assert PAGE.read_text() == reference(), "python -m pipeline.config.reference > docs/config.md"


def test_every_key_of_the_reference_says_what_it_does() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    for row in rows:
        *_, text, _ = row.replace("\\|", "").split("|")
        assert text.strip().removeprefix("*Operational.*").strip(), row
