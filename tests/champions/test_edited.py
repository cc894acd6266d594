"""What somebody changed in the folder of a registry is told, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import selftrain_here as selftrain

from pipeline.champions.promotion import promote
from pipeline.errors import UserError
from pipeline.models.format import find_weights, model_digest

pytestmark = pytest.mark.usefixtures("same_threads")


def change_weights(registry: Path) -> None:
    (registry / "v2.safetensors").write_bytes((registry / "v1.safetensors").read_bytes())


def change_info(registry: Path) -> None:
    path = registry / "v2.json"
    path.write_text(path.read_text().replace("emu", "owl"))


def delete_weights(registry: Path) -> None:
    (registry / "v2.safetensors").unlink()


def change_champion(registry: Path) -> None:
    path = registry / "champion.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))


def change_champion_without_seal(registry: Path) -> None:
    champion = json.loads((registry / "champion.json").read_text())
    champion.pop("seal")
    (registry / "champion.json").write_text(json.dumps({**champion, "reason": "another"}))


def delete_champion(registry: Path) -> None:
    (registry / "champion.json").unlink()


def change_line(registry: Path) -> None:
    path = registry / "history.jsonl"
    path.write_text(path.read_text().replace("because of 0", "because of me"))


def delete_line(registry: Path) -> None:
    path = registry / "history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def cut_history(registry: Path) -> None:
    path = registry / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-9])


def delete_history(registry: Path) -> None:
    (registry / "history.jsonl").unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_weights, r"v2.safetensors was changed: its bytes are not those that were promoted"),
        (change_info, r"v2.json was changed"),
        (delete_weights, r"v2.safetensors is gone"),
        (change_champion, r"champion.json is damaged .*its content is not what was written"),
        (change_champion_without_seal, r"champion.json is not the last line of"),
        (change_line, r"history.jsonl is not what was written: line 2 does not follow"),
        (delete_line, r"history.jsonl is not what was written: line 1 does not follow"),
        (cut_history, r"history.jsonl is not what was written: its last line has no end"),
        (delete_history, r"champion.json is not the last line of"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_somebody_changed_is_told(registry: Path, change: Callable[[Path], None], told: str) -> None:
    selftrain("verify", registry)
    change(registry)
    with pytest.raises(UserError, match="1 problems; do what each says"):
        selftrain("verify", registry)
    files = change in (change_weights, change_info, delete_weights)
    with pytest.raises(UserError, match=told):
        find_weights(registry) if files or change is change_champion else promote(None, registry, rollback=True)
    if files:
        promote(None, registry, rollback=True)
        assert find_weights(registry).name == "v1.safetensors"


def test_without_champion_json_nothing_is_promoted(registry: Path, models: list[Path]) -> None:
    delete_champion(registry)
    with pytest.raises(UserError, match=r"champion.json is gone; restore it, or begin another registry"):
        promote(models[2], registry)


def test_a_champion_that_was_damaged_is_promoted_anew(registry: Path, models: list[Path]) -> None:
    change_weights(registry)
    assert promote(models[1], registry).champion["version"] == 3
    assert model_digest(registry) == model_digest(models[1])


def test_an_earlier_champion_may_be_deleted_and_is_no_way_back(registry: Path) -> None:
    (registry / "v1.safetensors").unlink()
    selftrain("verify", registry)
    with pytest.raises(UserError, match=r"v1.safetensors is gone, so it cannot be champion again; restore it, or"):
        promote(None, registry, rollback=True)
    assert find_weights(registry).name == "v2.safetensors"
