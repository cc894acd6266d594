"""Files that appear whole or not at all, JSON, and files of JSON lines."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from support.json_values import JSON
from typing_extensions import TypedDict

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import (
    append_json,
    atomic_file,
    cut_lines,
    read_as,
    read_json,
    read_lines,
    write_bytes,
    write_json,
    write_sealed,
)
from pipeline.stages.lock import run_lock


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a") as file:
        file.write(b"new" * (1 // 0))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_write_into_a_file_as_folder_names_the_path_and_the_fix(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"")
    with pytest.raises(UserError, match=r"cannot write .*/a/b: .*free space or fix permissions"):
        write_bytes(tmp_path / "a" / "b", b"")
    with pytest.raises(UserError, match=r"cannot write .*/a/b: .*free space or fix permissions"):
        append_json(tmp_path / "a" / "b", {})


def test_no_link_that_another_put_there_is_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared folder. Names cannot be guessed; here one is, and nothing is written through it all the same."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    for name in (".selftrain-guessed.tmp", "m.jsonl", "run.lock"):
        (shared / name).symlink_to(victim)
    for write in (
        lambda: write_bytes(shared / "a", b"new"),
        lambda: append_json(shared / "m.jsonl", {}),
        lambda: run_lock(shared).__enter__(),
    ):
        with pytest.raises(UserError, match=r"cannot write .*(fix permissions|another folder)"):
            write()
    assert victim.read_text() == "precious"
    monkeypatch.undo()
    (shared / "b").symlink_to(victim)
    write_bytes(shared / "b", b"new")  # in the place of the link
    assert (victim.read_text(), (shared / "b").read_bytes()) == ("precious", b"new")


def test_files_have_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
        append_json(tmp_path / "m.jsonl", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_what_a_killed_write_left_is_removed_and_what_others_write_or_own_is_not(tmp_path: Path) -> None:
    (tmp_path / ".selftrain-0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_text("the user's")
    with atomic_file(tmp_path / "a") as file:
        files._clear.cache_clear()  # as in another process
        write_bytes(tmp_path / "b", b"")
        assert len(names(tmp_path)) == 3
        file.write(b"new")
    assert names(tmp_path) == [".notes.tmp", "a", "b"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_file_that_is_taken_for_left_over_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may look between the creation of a file and its lock."""
    lock, looks = fcntl.flock, [True]

    def flock(file: Any, how: int) -> None:
        if looks:
            looks.clear()
            files._clear.cache_clear()
            files._clear(tmp_path)
        lock(file, how)

    monkeypatch.setattr("fcntl.flock", flock)
    write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"]


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"st')
    append_json(tmp_path / "m.jsonl", {"step": 2})
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n{"st\n{"step": 2}\n'


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


def test_sealed_json_is_known_again_and_what_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_sealed(path, {"top1": 0.85, "counts": {2: (1,), 10: ()}})
    assert read_json(path) == {"top1": 0.85, "counts": {"2": [1], "10": []}}
    path.write_text(path.read_text().replace("0.85", "0.95"))
    with pytest.raises(UserError, match=r"result\.json is damaged \(its content is not what was written.*`seal`"):
        read_json(path)
    path.write_text('{"top1": 0.95}')  # of an older version, or edited on purpose
    assert read_json(path) == {"top1": 0.95}


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


def test_a_zero_page_in_the_middle_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    content = b"".join(b'{"step": %d}\n' % step for step in range(1000))
    path.write_bytes(content[:4096] + bytes(4096) + content[8192:])
    for read in (lambda: read_lines(path), lambda: cut_lines(path, 990)):
        with pytest.raises(UserError, match=r"m\.jsonl holds a line that is not JSON \(line 301: .*delete that line"):
            read()
    assert len(read_lines(path, torn=True)) == 706
    path.write_text('{"step": "1"}\n')
    with pytest.raises(UserError, match="without a step"):
        cut_lines(path, 990)


@pytest.mark.parametrize("line", ["5", "null", "[]", '"x"', "[" * 100_000])
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n")
    for read in (lambda: read_lines(tmp_path / "m.jsonl"), lambda: cut_lines(tmp_path / "m.jsonl", 1)):
        with pytest.raises(UserError, match="not JSON"):
            read()
    assert read_lines(tmp_path / "m.jsonl", torn=True) == ()


def test_json_of_another_shape_is_refused_by_its_key(tmp_path: Path) -> None:
    class Shape(TypedDict):
        rounds: list[dict[str, int]]

    write_json(tmp_path / "a.json", {"rounds": [{"a": 1}, {"a": "1"}], "more": 0})
    with pytest.raises(UserError, match=r"a\.json is damaged \(`rounds\.1\.a`: Input should be a valid integer\)"):
        read_as(Shape, tmp_path / "a.json")


def test_a_torn_line_in_the_middle_is_an_error_unless_it_may_be_there(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"m\.jsonl holds a line that is not JSON .*delete that line"):
        read_lines(path)
    assert read_lines(path, torn=True) == ({"step": 1}, {"step": 3})
