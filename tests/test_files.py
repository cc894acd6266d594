"""Files that appear whole or not at all, JSON, and files of JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from support.json_values import JSON

from pipeline.errors import UserError
from pipeline.files import append_json, atomic_path, cut_lines, read_json, read_lines, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new" * (1 // 0))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_write_into_a_file_as_folder_names_the_path_and_the_fix(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"")
    with pytest.raises(UserError, match=r"cannot write .*/a/b: .*free space or fix permissions"):
        write_bytes(tmp_path / "a" / "b", b"")
    with pytest.raises(UserError, match=r"cannot write .*/a/b: .*free space or fix permissions"):
        append_json(tmp_path / "a" / "b", {})


def test_the_data_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


@given(JSON)
def test_json_survives(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, {"value": value})
    assert read_json(path) == {"value": value}


def test_nan_is_refused_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})


def test_broken_and_missing_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"broken\.json is damaged \(no JSON: "):
        read_json(tmp_path / "broken.json")
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")


def test_json_that_is_no_object_or_lacks_a_key_is_damaged_and_named(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_text('{"outputs": {}}')
    for ask in (lambda value: value["complete"], lambda value: value["outputs"]["labels"]):
        with pytest.raises(UserError, match=r"damaged \(it has no `(complete|labels)`\); delete the folder .* and"):
            ask(read_json(path))
    path.write_text("[]")
    with pytest.raises(UserError, match=r"stage\.json is damaged \(a list in place of an object\)"):
        read_json(path)


def test_lines_are_appended(tmp_path: Path) -> None:
    for step in range(3):
        append_json(tmp_path / "m.jsonl", {"step": step})
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_half_line_at_the_end_is_not_read_and_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_lines(path) == ()
    cut_lines(path)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_lines(path) == ({"step": 1}, {"step": 2})
    cut_lines(path)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_lines(path, 1)
    assert path.read_text() == '{"step": 1}\n'


def test_a_torn_line_in_the_middle_is_an_error_unless_it_may_be_there(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"m\.jsonl holds a line that is not JSON .*delete that line"):
        read_lines(path)
    assert read_lines(path, torn=True) == ({"step": 1}, {"step": 3})
