"""Every method has a page with the same parts."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline
from pipeline.methods import METHODS

CARDS = Path(pipeline.__file__).parents[1] / "docs" / "methods"
PARTS = (
    *("```yaml", "## Steps", "## Key settings", "## The control"),
    *("**Cost**:", "**Avoid when**", "**Source**:", "**Test**", "**Measured here**"),
)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_a_page_with_every_part(method: str) -> None:
    text = (CARDS / f"{method}.md").read_text()
    assert [part for part in PARTS if part not in text] == []
    assert f"method: {method}" in text


def test_every_page_is_that_of_a_method() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} - {"index"} == set(METHODS)
