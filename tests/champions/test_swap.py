"""Promotions that are killed between any two steps, are read between any two steps, and come two at once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waiting import wait_for

from pipeline.champions.history import read_history
from pipeline.champions.promotion import promote
from pipeline.cli.shards import verify
from pipeline.models.format import model_digest

Step = Callable[[], None]


def each_step(monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    """Call a function before and after each file that appears, which are all the steps that a reader can see."""
    replace = os.replace

    def replaced(*paths: object) -> None:
        step()
        replace(*paths)  # type: ignore[arg-type]
        step()

    monkeypatch.setattr(os, "replace", replaced)


def in_a_child(action: Step) -> int:
    """Do something in a forked process; returns its exit status."""
    if (child := os.fork()) == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.process
@pytest.mark.parametrize("rollback", [False, True])
def test_a_kill_between_any_two_steps_leaves_the_old_champion_or_the_new_one(
    models: list[Path], tmp_path: Path, rollback: bool
) -> None:
    """The registry is whole after it, and the same command goes on from there."""
    kill_at, seen = 1, set()
    while True:
        registry = tmp_path / str(kill_at)
        for model in models[:2]:
            promote(model, registry)
        lines = (registry / "history.jsonl").read_bytes()
        old, new = models[1], models[0] if rollback else models[2]
        count = iter(range(1, 100))

        def killed(count: object = count, kill_at: int = kill_at) -> None:
            if next(count) == kill_at:  # type: ignore[call-overload]
                os.kill(os.getpid(), signal.SIGKILL)

        def action(registry: Path = registry, killed: Step = killed) -> None:
            with pytest.MonkeyPatch.context() as patch:
                each_step(patch, killed)
                promote(None if rollback else models[2], registry, rollback=rollback)

        code = status_of(in_a_child(action))
        found = model_digest(registry)
        seen.add(found)
        assert found in (model_digest(old), model_digest(new))
        verify(registry)
        assert (registry / "history.jsonl").read_bytes().startswith(lines)
        again = promote(None if rollback else models[2], registry, rollback=rollback)
        assert again.changed == (found == model_digest(old)), "the same command goes on, or finds all of it done"
        assert model_digest(registry) == model_digest(new)
        promote(models[1], registry)  # the next change writes the line that a kill kept out of the history
        after = (registry / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["number"] for line in after] == [1, 2, 3, 4]
        verify(registry)
        assert not list(registry.glob("v4*")), "what the kill left is used, so that nothing lies there twice"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kill_at += 1
    assert kill_at > (4 if rollback else 8), "champion.json and history.jsonl, and two files of a new version"
    assert seen == {model_digest(old), model_digest(new)}


def test_a_reader_between_any_two_steps_sees_the_old_champion_or_the_new_one(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "birds"
    promote(models[0], registry)
    seen: list[str] = []

    def look() -> None:
        seen.append(model_digest(registry))
        assert read_history(registry)[-1]["model"] == seen[-1]

    each_step(monkeypatch, look)
    promote(models[1], registry)
    old, new = model_digest(models[0]), model_digest(models[1])
    assert seen == [old] * 5 + [new] * 3


def test_the_weights_that_a_killed_promotion_left_are_not_taken_for_another_model(
    models: list[Path], tmp_path: Path
) -> None:
    registry = tmp_path / "birds"
    promote(models[0], registry)
    (registry / "v2.safetensors").write_bytes(models[1].read_bytes())
    assert promote(models[2], registry).champion["version"] == 3
    assert model_digest(registry) == model_digest(models[2])
    assert (registry / "v2.safetensors").read_bytes() == models[1].read_bytes()


@pytest.mark.process
def test_of_two_promotions_at_once_one_follows_the_other(models: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "birds"
    promote(models[0], registry)

    def waiting(name: str) -> Step:
        def begun() -> None:
            if not (tmp_path / name).exists():
                (tmp_path / name).touch()
                wait_for(lambda: (tmp_path / "go").exists())

        return begun

    def first() -> None:
        with pytest.MonkeyPatch.context() as patch:
            each_step(patch, waiting("first"))
            promote(models[1], registry)

    children = [in_a_child(first)]
    wait_for((tmp_path / "first").exists)  # it holds the lock, and has written nothing yet
    children.append(in_a_child(lambda: promote(models[2], registry) and None))
    (tmp_path / "go").touch()
    assert [status_of(child) for child in children] == [0, 0]
    assert [entry["model"] for entry in read_history(registry)] == [model_digest(model) for model in models]
    assert model_digest(registry) == model_digest(models[2])
