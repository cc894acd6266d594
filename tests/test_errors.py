"""What people are shown of an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.errors import LONGEST, UserError, shown
from pipeline.files import read_json


def test_control_characters_of_a_message_do_not_reach_the_terminal() -> None:
    assert (
        shown("no model at \x1b[2Jcat\r\nbird\u202e\tå") == r"no model at \x1b[2Jcat\r" + "\nbird" + r"\u202e" + "\tå"
    )


def test_a_message_has_a_length_that_can_be_read() -> None:
    assert len(shown("x" * 10**7)) < LONGEST + 100


NINE_TIMES_NINE = "a: &a [x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "nested": "[" * 3000 + "]" * 3000,
    "digits": "seed: " + "9" * 5000,
    "laughs": NINE_TIMES_NINE + "seed: *i",
    "no date": "seed: 2024-13-45",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_an_error_of_readable_length(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        load_config(tmp_path / "c.yaml")
    assert len(str(told.value)) < LONGEST


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": ' * 100_000])
def test_hostile_json_is_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(UserError, match=r"stage\.json is damaged \(no JSON"):
        read_json(tmp_path / "stage.json")
