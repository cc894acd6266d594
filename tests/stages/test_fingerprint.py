"""What makes two stages the same."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.json_values import JSON

from pipeline.stages.fingerprint import StageInputs, code_version, digest, fingerprint


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_digest_does_not_depend_on_key_order(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_a_fingerprint_depends_on_kind_config_inputs_and_version() -> None:
    inputs = StageInputs({"a": 1}, {"x": "1"})
    base = fingerprint("train", 1, inputs)
    others = [
        fingerprint("label", 1, inputs),
        fingerprint("train", 1, StageInputs({"a": 2}, {"x": "1"})),
        fingerprint("train", 1, StageInputs({"a": 1}, {"x": "2"})),
        fingerprint("train", 99, inputs),
    ]
    assert len({base, *others}) == 5


def test_the_code_is_known_by_the_last_commit_that_changed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_DIR", raising=False)

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x.x"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def version() -> str:
        code_version.cache_clear()
        return code_version(tmp_path)

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
