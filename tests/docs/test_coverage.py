"""docs/coverage.md claims nothing that no test holds."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from support.command import ROOT
from support.sources import NAMED as SOURCES

PAGE = ROOT / "docs" / "coverage.md"
OPEN = ("robustness: ", "transfer: ")
"""What follows later."""
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Line(NamedTuple):
    source: str
    technique: str
    status: str
    where: str
    proof: str


def lines() -> list[Line]:
    found, source = [], ""
    for text in PAGE.read_text().splitlines():
        if text.startswith("## "):
            source = text[3:]
        elif text.startswith("| ") and not text.startswith("| technique"):
            cells = [cell.strip() for cell in text.strip("|").split(" | ")]
            assert len(cells) == 4, text
            found.append(Line(source, *cells))
    return found


every_line = pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line.source}: {line.technique}")


def test_all_that_the_sources_name_has_its_rows_and_each_row_is_named() -> None:
    found = lines()
    for source, named in SOURCES.items():
        rows = {line.technique for line in found if line.source == source}
        elsewhere = {line.technique for line in found} - rows
        wanted = {row for each in named.values() for row in each}
        assert wanted - rows <= elsewhere, "no row says what became of these"
        assert not rows - wanted, "no source names these"
    assert {line.source for line in found} == SOURCES.keys()
    names = [(line.source, line.technique) for line in found]
    assert len(set(names)) == len(names)


@every_line
def test_a_row_says_yes_with_a_test_or_open_with_a_reason(line: Line) -> None:
    assert line.status in ("yes", "open")
    if line.status == "yes":
        assert not NAMED.sub("", line.proof).strip(", "), "beside the tests there is nothing to say"
        assert NAMED.search(line.proof), "it names no test as `tests/FILE.py::test_name`"
        assert line.where != "-", "it says nowhere where it is"
    else:
        assert re.search("[a-z]{3}", line.proof), "it is open without a reason"
        assert not NAMED.search(line.proof), "it names a test: then it is no longer open"


@every_line
def test_each_named_test_exists(line: Line) -> None:
    for file, name in NAMED.findall(line.proof):
        assert (ROOT / file).is_file(), f"there is no {file}"
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file} has no {name}"


@every_line
def test_what_follows_later_is_open(line: Line) -> None:
    if line.technique.startswith(OPEN):
        assert line.status == "open"


def test_what_follows_later_is_named() -> None:
    later = [line.technique for line in lines() if line.technique.startswith(OPEN)]
    assert [name.partition(": ")[0] for name in later].count("robustness") == 3
    assert [name.partition(": ")[0] for name in later].count("transfer") == 2
