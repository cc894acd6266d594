"""A champion labels the shards that are new, and no other again, when the flow runs anew in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.images import png, write_files
from support.watched import last_flow_run, logs_of, run_watched

from pipeline.champions.promotion import promote
from pipeline.config import Config, changed, dump_yaml
from pipeline.packing.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.usefixtures("prefect_server")]

FEW_STEPS = ["student.steps=2", "student.warmup_steps=0", "student.evaluations=1", "evaluate.control=false"]


def test_only_new_shards_are_labeled(digits: Config, teacher: Path, tmp_path: Path) -> None:
    assert digits.data.root is not None
    data = changed(digits.data, root=shutil.copytree(digits.data.root, tmp_path / "packed"))
    rounds = changed(digits.rounds, num_rounds=1)
    config = dump_yaml(changed(digits, data=data, rounds=rounds))
    promote(teacher, tmp_path / "champions")
    options = {"champion": str(tmp_path / "champions"), "set": FEW_STEPS}

    run_watched(tmp_path, config, **options)
    (labels,) = (tmp_path / "run/rounds/1").glob("label-*")
    earlier = {path.name: path.stat().st_ino for path in labels.glob("*.arrow")}
    assert data.root is not None
    pack(
        write_files(tmp_path / "new", {f"{number}.png": png(number) for number in range(40)}),
        data.root,
        split="unlabeled",
    )

    run_watched(tmp_path, config, **options)
    (anew,) = set((tmp_path / "run/rounds/1").glob("label-*")) - {labels}
    now = {path.name: path.stat().st_ino for path in anew.glob("*.arrow")}
    assert earlier.items() < now.items()
    num_new = len(now) - len(earlier)
    run, tasks = last_flow_run(num_tasks=5)
    said = f"{num_new} shards are labeled now, {len(earlier)} were labeled before"
    logs_of(run, f"label (round 1): {said}")
    assert [(task.name, task.state.name) for task in tasks][:2] == [
        ("train teacher (round 0)", "Reused"),
        ("label (round 1)", "Completed"),
    ]
