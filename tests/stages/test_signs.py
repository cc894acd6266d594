"""Signs of life, by which machines know of each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.waiting import wait_for

from pipeline.stages import signs
from pipeline.stages.signs import Observer, Sign


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "BEAT_S", 0.001)


def test_a_sign_repeats_what_was_said_last_until_its_end(tmp_path: Path) -> None:
    path, observer = tmp_path / "new" / "sign.json", Observer()
    with Sign(path, busy=True) as sign:
        assert observer.see(path)["busy"]
        wait_for(lambda: observer.lives(path))
        sign.say(code=3)
        wait_for(lambda: observer.see(path).get("code") == 3)
        assert "busy" not in observer.see(path)
    last = path.read_bytes()
    assert json.loads(last)["code"] == 3
    assert observer.lives(path)  # nobody knows yet


def test_a_sign_that_somebody_left_does_not_live(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"at": 1, "code": 0}')
    observer = Observer()
    for _ in range(3):
        assert not observer.lives(tmp_path / "old.json")
        assert not observer.is_lost(tmp_path / "old.json")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"at": 1}'])
def test_a_sign_that_stands_still_or_cannot_be_read_is_lost_after_a_while(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, observer = tmp_path / "sign.json", Observer()
    path.write_text('{"at": 0}')
    observer.see(path)
    path.write_text('{"at": 1}')
    wait_for(lambda: observer.lives(path))
    path.unlink() if content is None else path.write_bytes(content)
    assert observer.lives(path)
    assert observer.see(path) == {"at": 1}
    monkeypatch.setattr(signs, "LOST_S", 0.01)
    wait_for(lambda: observer.is_lost(path))
    assert not observer.lives(path)
