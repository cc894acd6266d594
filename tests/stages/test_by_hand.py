"""The verbs that run one stage each, outside of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import selftrain_here as selftrain
from support.configs import write

from pipeline.config import Config, dump_yaml, parse
from pipeline.errors import UserError


def test_train_refuses_what_only_a_run_trains(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("method: uda")
    with pytest.raises(UserError, match=r"`method: uda`, which `selftrain run` trains"):
        selftrain("train", tmp_path / "c.yaml", "--out", tmp_path / "out")


def test_what_one_stage_does_not_know_of_its_run_is_refused(tmp_path: Path) -> None:
    """Or else a student would start at random, and a committee would be left out, without a word."""
    probe = "{probe: {}, start: {model: a.pth}}"
    config = write(tmp_path, f"teacher: {probe}\ncommittee: [{probe}]\nrounds: {{start: init}}\n")
    with pytest.raises(UserError, match=r"rounds\.start is init, so a student starts from its teacher"):
        selftrain("train", config, "--selection", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="committee is set, but this verb takes one teacher"):
        selftrain("label", config, "--teacher", tmp_path, "--out", tmp_path / "out")


def test_stages_by_hand_are_those_of_round_1(digits: Config, teacher: Path, tmp_path: Path) -> None:
    raw = digits.model_dump(mode="json")
    raw["rounds"]["overrides"] = [{"label.flip": True}, {"label.flip": False}]
    (tmp_path / "c.yaml").write_text(dump_yaml(parse(Config, raw, "tests")))
    selftrain("label", tmp_path / "c.yaml", "--teacher", teacher, "--out", tmp_path / "labels")
    assert json.loads((tmp_path / "labels" / "job.json").read_text())["label"]["flip"] is True
    with pytest.raises(UserError, match=r"label\.ensemble is 2, but this verb takes one teacher"):
        selftrain("label", tmp_path / "c.yaml", "--teacher", teacher, "--out", tmp_path / "x", "--set=label.ensemble=2")
