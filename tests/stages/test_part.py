"""Parts of a stage: shares that are the whole together, and folders that must be of one stage and one environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import check_stage_folder, finish_folder, open_folder, read_record
from pipeline.stages.part import Part, parse_part, parts_of

ENVIRONMENT = {"torch": "2", "processes": 1}
INPUTS = StageInputs({"a": 1}, {"x": "1"})


def open_part(whole: Path, part: Part, env: dict[str, str | int], *, accept: bool = False) -> bool:
    folder, shared = part.folder(whole), [whole, *parts_of(whole)]
    others = [other for other in shared if other != folder]
    return open_folder(folder, "label", 1, INPUTS, env, accept_environment=accept, shared_with=others)


def open_whole(whole: Path, env: dict[str, str | int], *, accept: bool = False) -> bool:
    return open_folder(whole, "label", 1, INPUTS, env, accept_environment=accept, shared_with=parts_of(whole))


@pytest.mark.parametrize("number", [1, 2, 3, 7, 20])
def test_the_shares_of_all_parts_are_the_whole(number: int) -> None:
    items = list(range(7))
    shares = [Part(part, number).share(items) for part in range(1, number + 1)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_is_written_as_k_of_n() -> None:
    assert parse_part("3/8") == Part(3, 8)
    assert str(Part(3, 8)) == "3/8"
    for text in ("0/8", "9/8", "3", "a/b", "-1/8", "3/8/1", ""):
        with pytest.raises(UserError, match=r"is no part; write K/N"):
            parse_part(text)


def test_parts_and_their_stage_must_be_of_one_environment(tmp_path: Path) -> None:
    other: dict[str, str | int] = {"torch": "3", "processes": 1}
    open_part(tmp_path, Part(1, 2), ENVIRONMENT)
    open_part(tmp_path, Part(2, 2), {**ENVIRONMENT, "processes": 4})  # they divide the work as they like
    for opens in (open_whole, lambda *a: open_part(tmp_path, Part(1, 3), *a[1:])):
        with pytest.raises(UserError, match=r"1-of-2 was begun in another environment \(torch: '2' -> '3'\)"):
            opens(tmp_path, other)
    open_whole(tmp_path, other, accept=True)
    assert ENVIRONMENT in read_record(tmp_path)["earlier_environments"]
    assert not open_whole(tmp_path, other)  # it was accepted


def test_the_record_of_a_stage_says_nothing_of_its_parts(tmp_path: Path) -> None:
    for folder in (tmp_path / "parts", tmp_path / "whole"):
        if folder.name == "parts":
            open_part(folder, Part(1, 2), ENVIRONMENT)
            check_stage_folder(folder, "label")
        open_whole(folder, ENVIRONMENT)
        finish_folder(folder, [])
    first, second = ((tmp_path / name / "stage.json").read_bytes() for name in ("parts", "whole"))
    assert first == second


def test_a_part_that_is_done_leaves_its_stage_unfinished_until_the_stage_is_done(tmp_path: Path) -> None:
    open_part(tmp_path, Part(1, 2), ENVIRONMENT)
    finish_folder(Part(1, 2).folder(tmp_path), [], complete=False)
    assert not open_part(tmp_path, Part(1, 2), ENVIRONMENT)
    assert not open_whole(tmp_path, ENVIRONMENT)
    finish_folder(tmp_path, [])
    assert open_part(tmp_path, Part(1, 2), {"torch": "3"})
