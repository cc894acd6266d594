"""Files that appear whole or not at all, fingerprints, and what is done with a folder that exists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import stage
from pipeline.config import Runtime
from pipeline.errors import UserError
from pipeline.files import append_json, atomic_path, read_json, write_bytes, write_json
from pipeline.stages.fingerprint import digest, fingerprint
from pipeline.stages.folder import open_stage, stage_record
from pipeline.stages.lock import run_lock
from pipeline.stages.machine import environment

ENVIRONMENT = {"torch": "2", "threads": 1}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------- files


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
    write_json(path, value)
    assert read_json(path) == value


def test_nan_is_refused_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})


def test_broken_and_missing_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"broken\.json cannot be read as JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        read_json(tmp_path / "absent.json")


# ------------------------------------------------------------------------------------------------------ fingerprints


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_digest_does_not_depend_on_key_order(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_a_fingerprint_depends_on_kind_config_inputs_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fingerprint("train", {"a": 1}, {"x": "1"})
    others = [
        fingerprint("label", {"a": 1}, {"x": "1"}),
        fingerprint("train", {"a": 2}, {"x": "1"}),
        fingerprint("train", {"a": 1}, {"x": "2"}),
    ]
    monkeypatch.setitem(stage.FORMAT_VERSION, "train", 99)
    assert len({base, *others, fingerprint("train", {"a": 1}, {"x": "1"})}) == 5


def test_the_code_is_known_by_the_last_commit_that_changed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_DIR", raising=False)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x.x"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def version() -> str:
        stage.code_version.cache_clear()
        return stage.code_version(tmp_path)

    (tmp_path / "pipeline").mkdir()
    code = tmp_path / "pipeline" / "a.py"
    code.write_text("a")
    assert version() == "unknown"
    git("init", "-q")
    git("add", "pipeline")
    git("commit", "-qm", "one")
    first = version()
    assert first == git("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.md").write_text("other files change nothing")
    git("add", "notes.md")
    git("commit", "-qm", "two")
    assert version() == first
    code.write_text("b")
    assert version() == f"{first}-dirty"
    git("commit", "-qam", "three")
    assert version() == git("rev-parse", "HEAD")[:12] != first
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert version() == "unknown"


def test_the_environment_names_what_bits_depend_on() -> None:
    found = environment(Runtime(device="cpu"))
    assert {"selftrain", "commit", "torch", "timm", "numpy", "pillow", "machine"} < set(found)
    json.dumps(found)


# ----------------------------------------------------------------------------------------------------------- folders


def test_a_finished_stage_is_complete_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    opened = open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT)
    assert not opened.complete
    with pytest.raises(UserError, match="is an unfinished stage; type the command that began it again"):
        stage_record(tmp_path / "s")
    assert not open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT).complete
    opened.finish(best=3)
    assert open_stage(tmp_path / "s", "train", {"a": 1}, {}, ENVIRONMENT).complete
    assert stage_record(tmp_path / "s")["outputs"] == {"best": 3}


def test_another_config_input_or_kind_is_refused_by_name(tmp_path: Path) -> None:
    open_stage(tmp_path, "train", {"a": 1}, {"x": "1"}, ENVIRONMENT)
    for kind, config, inputs, text in (
        ("train", {"a": 2}, {"x": "1"}, r"other settings \(a: 1 -> 2\)"),
        ("train", {"a": 1}, {"x": "2"}, r"other settings \(x: '1' -> '2'\)"),
        ("label", {"a": 1}, {"x": "1"}, "holds a train stage"),
    ):
        with pytest.raises(UserError, match=text):
            open_stage(tmp_path, kind, config, inputs, ENVIRONMENT)  # type: ignore[arg-type]


def test_the_environment_matters_only_to_an_unfinished_stage(tmp_path: Path) -> None:
    opened = open_stage(tmp_path, "train", {}, {}, ENVIRONMENT)
    other = {**ENVIRONMENT, "torch": "3"}
    with pytest.raises(UserError, match=r"torch: '2' -> '3'.*--accept-environment"):
        open_stage(tmp_path, "train", {}, {}, other)
    opened.finish()
    assert open_stage(tmp_path, "train", {}, {}, other).complete


def test_launchers_files_do_not_make_a_folder_foreign_and_others_do(tmp_path: Path) -> None:
    for name in stage.OWN_FILES:
        (tmp_path / name).write_text("")
    (tmp_path / "job.json").write_text('{"kind": "select", "out": "here"}')
    open_stage(tmp_path, "select", {}, {}, {})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "job.json").write_text('{"boss": "me"}')  # the user's, though it has the name of ours
    with pytest.raises(UserError, match="is not empty and not a select stage"):
        open_stage(tmp_path / "b", "select", {}, {}, {})


def test_the_run_of_a_path_is_found_upwards(tmp_path: Path) -> None:
    run, inside = tmp_path / "run", tmp_path / "run" / "rounds" / "0" / "train-1"
    inside.mkdir(parents=True)
    (inside / "run.lock").write_text("")  # of a stage that was begun by hand
    assert stage.find_run(inside) is None
    for name in ("run.lock", "config.yaml"):
        (run / name).write_text("")
    assert stage.find_run(run) == stage.find_run(inside) == stage.find_run(inside / "model.safetensors") == run
    assert stage.find_run(tmp_path) is None


# -------------------------------------------------------------------------------------------------------- the run lock


def test_the_lock_names_its_owner_and_is_gone_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from pipeline.stage import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    root = Path(stage.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=-1) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(UserError, match=f"in use by process {owner.pid};"), run_lock(tmp_path, wait_s=0.2):
            pass
        owner.kill()
        began = time.monotonic()
        with run_lock(tmp_path):
            assert time.monotonic() - began < 10
            assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder or fix permissions"), run_lock(tmp_path / "file" / "x"):
        pass


def test_lines_are_appended(tmp_path: Path) -> None:
    for step in range(3):
        append_json(tmp_path / "m.jsonl", {"step": step})
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0, 1, 2]
