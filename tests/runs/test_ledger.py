"""RUN/stages.json: which stages the run asked for, by which the report tells them from those of other settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.fake_stages import FakeStages, with_section

from pipeline.config import Config, Finetune, Start, changed
from pipeline.report.record import read_run
from pipeline.runs.ledger import read_ledger
from pipeline.runs.loop import run_loop
from pipeline.stages.jobs import Job
from pipeline.stages.kinds import KINDS


@pytest.fixture
def config(digits: Config) -> Config:
    return with_section(digits, "rounds", num_rounds=2)


class StopsAt(FakeStages):
    """Is killed before the n-th stage that it is asked for does anything."""

    def __init__(self, number: int, *val: float) -> None:
        super().__init__(*val)
        self.number = number

    def __call__(self, job: Job, lock_fd: int) -> None:
        if len(self.jobs) == self.number:
            raise KeyboardInterrupt
        super().__call__(job, lock_fd)


def asked(run: Path) -> list[tuple[str, str | None, int | None]]:
    return [(entry.kind, entry.role, entry.round) for entry in read_ledger(run)]


def test_every_stage_is_named_in_order_with_what_it_is_for(config: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8)
    run_loop(config, tmp_path, run_stage=stages)
    students = [[("label", None, n), ("select", None, n), ("train", "student", n)] for n in (1, 2)]
    ends = [("train", "control", 2), ("evaluate", None, None)]
    assert asked(tmp_path) == [("train", "teacher", 0), *students[0], *students[1], *ends]
    assert [tmp_path / entry.folder for entry in read_ledger(tmp_path)] == [job.out for job in stages.jobs]


def test_a_stage_is_named_before_it_runs(config: Config, tmp_path: Path) -> None:
    class Stages(FakeStages):
        def __call__(self, job: Job, lock_fd: int) -> None:
            assert tmp_path / read_ledger(tmp_path)[-1].folder == job.out
            super().__call__(job, lock_fd)

    run_loop(config, tmp_path, run_stage=Stages(0.6, 0.7, 0.8))


@pytest.mark.parametrize(
    ("method", "models"),
    [("uda", [("student", 1)]), ("meta", [("student", 1), ("teacher", 0)])],
)
def test_models_of_one_training_have_their_roles(
    config: Config, tmp_path: Path, method: str, models: list[tuple[str, int]]
) -> None:
    config = with_section(config, "evaluate", control=False)
    result = run_loop(changed(config, method=method), tmp_path, run_stage=FakeStages(0.6, 0.7))
    entries = [entry for entry in read_ledger(tmp_path) if entry.kind == "train"]
    assert [(entry.role, entry.round) for entry in entries] == models
    assert {(e["role"], Path(e["train_dir"])) for e in result["rounds"]} == {(e.role, e.folder) for e in entries}


def test_a_finetune_and_both_controls_are_named(config: Config, tmp_path: Path) -> None:
    finetuned = changed(config, finetune=Finetune(image_size=12, steps=5))
    run_loop(finetuned, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8, finetune=0.9))
    assert asked(tmp_path)[-4:] == [
        ("train", "finetune", 3),
        ("train", "control", 2),
        ("train", "control", 3),
        ("evaluate", None, None),
    ]


def test_the_same_command_adds_to_what_is_there(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, tmp_path, run_stage=StopsAt(5, 0.6, 0.7, 0.8))
    before = read_ledger(tmp_path)
    assert len(before) == 6  # the one it was killed at was asked for
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, tmp_path, run_stage=StopsAt(0, 0.6, 0.7, 0.8))
    assert read_ledger(tmp_path) == before
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8))
    after = read_ledger(tmp_path)
    assert after[:6] == before
    assert len(after) == 9


def test_another_config_begins_anew(config: Config, tmp_path: Path) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8))
    folders = {entry.folder for entry in read_ledger(tmp_path)}
    assert any(folder.parts[0] == "control" for folder in folders)
    with pytest.raises(KeyboardInterrupt):
        run_loop(with_section(config, "select", threshold=0.5), tmp_path, run_stage=StopsAt(0))
    assert asked(tmp_path) == [("train", "teacher", 0), ("label", None, 1), ("select", None, 1)]
    teacher, label, select = read_ledger(tmp_path)
    assert {teacher.folder, label.folder} <= folders  # reused
    assert select.folder not in folders
    seen = read_run(tmp_path)
    assert [round_.number for round_ in seen.rounds] == [0, 1]
    assert (seen.rounds[1].select, seen.rounds[1].train, seen.control) == (None, None, None)
    assert seen.num_siblings == 5  # of the earlier config


def test_without_a_control_an_earlier_one_is_not_named(config: Config, tmp_path: Path) -> None:
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8))
    assert read_run(tmp_path).control is not None
    run_loop(with_section(config, "evaluate", control=False), tmp_path, run_stage=FakeStages())
    assert read_run(tmp_path).control is None


def test_where_a_run_takes_another_way_the_rest_of_the_earlier_way_is_dropped(
    config: Config, teacher: Path, tmp_path: Path
) -> None:
    """The config says where the weights come from, not what they are: other weights make other stages."""
    weights, run = Path(shutil.copytree(teacher, tmp_path / "weights")), tmp_path / "run"
    config = with_section(config, "teacher", start=Start(model=str(weights)))
    run_loop(config, run, run_stage=FakeStages(0.6, 0.7, 0.8))
    before = read_ledger(run)
    state = load_file(weights / "model.safetensors")
    (weights / "stage.json").unlink()  # by which the stage knows its bytes
    save_file({name: value + 1 for name, value in state.items()}, weights / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, run, run_stage=StopsAt(1, 0.6, 0.7, 0.8))
    assert asked(run) == [("train", "teacher", 0), ("label", None, 1)]
    assert not {entry.folder for entry in before} & {entry.folder for entry in read_ledger(run)}


def test_a_result_of_other_stages_is_not_shown(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of a kind makes new stages of the same config; what the old ones came to stays until they end."""
    run_loop(config, tmp_path, run_stage=FakeStages(0.6, 0.7, 0.8))
    assert read_run(tmp_path).result is not None
    monkeypatch.setitem(KINDS, "train", replace(KINDS["train"], version=KINDS["train"].version + 1))
    with pytest.raises(KeyboardInterrupt):
        run_loop(config, tmp_path, run_stage=StopsAt(1, 0.6, 0.7, 0.8))
    seen = read_run(tmp_path)
    assert seen.result is None
    assert [round_.number for round_ in seen.rounds] == [0]
