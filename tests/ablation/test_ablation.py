"""Ablations: which runs they make, what is reused, and that the table claims no more than the rows show."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from support.command import ROOT
from support.fake_stages import FakeStages
from support.saved import save_random

import pipeline.ablation.ablate
import pipeline.ablation.cells
import pipeline.runs.loop
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import BASE, Mode, all_techniques
from pipeline.ablation.rows import Row, read_rows
from pipeline.config import Config, changed, load_config
from pipeline.errors import Interrupted, UserError
from pipeline.packing.pack import pack
from pipeline.stages.jobs import Job
from pipeline.stages.lock import run_lock

THREE = ("dropout", "ema", "mixup")


@pytest.fixture(autouse=True)
def no_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake stages have no weights to count the operations of."""
    monkeypatch.setattr(pipeline.ablation.ablate, "_flops", lambda job, num_images, stage: 1e12)


def with_job_files(stages: FakeStages) -> FakeStages:
    """Fake stages that leave what a launcher leaves, which an ablation reads."""
    call = stages.__class__.__call__

    class Leaving(stages.__class__):  # type: ignore[name-defined,misc]
        def __call__(self, job, lock_fd):  # type: ignore[no-untyped-def]
            call(self, job, lock_fd)
            (job.out / "job.json").write_text(job.model_dump_json())
            line = {"step": 1, "seconds": 2.0, "images": 10}
            (job.out / "timing.jsonl").write_text(json.dumps(line) + "\n")

    stages.__class__ = Leaving
    return stages


@pytest.mark.parametrize(("mode", "num_rounds"), [("alone", 0), ("stack", 1)])
def test_every_row_of_all_changes_a_stage_that_is_run(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, num_rounds: int
) -> None:
    """A stage's folder has its fingerprint in its name."""
    config = changed(digits, rounds=changed(digits.rounds, num_rounds=num_rounds))
    names = all_techniques(config)
    assert {"mixup", "ema", "momentum"} <= set(names)
    assert ("threshold" in names) == (num_rounds == 1)
    for module in (pipeline.runs.loop, pipeline.ablation.cells):  # `all_techniques` has tried them
        monkeypatch.setattr(module, "check_networks", lambda *_: None)
    rows = run_ablation(config, tmp_path, names, mode, 1, run_stage=with_job_files(FakeStages(0.8, 0.9)))
    stages = {row.technique: {path.name for path in (tmp_path / row.folder).glob("rounds/*/*-*")} for row in rows}
    assert all(stages.values())
    for row in rows[1:]:
        assert stages[row.technique] != stages[row.against], f"{row.technique} was never exercised"


def test_the_stacks_that_the_page_prints_run(digits: Config, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    commands = re.findall(r"selftrain ablate configs/cifar10_4k_ablation\.yaml [^`]*?--mode stack[^`]*", page)
    assert len(commands) == 2, "one to type, and one that made the table"
    model = save_random(tmp_path / "model.safetensors", tuple("0123456789"))
    for number, command in enumerate(commands):
        given = shlex.split(command.replace("\\\n", " "))
        settings = dict(value.split("=", 1) for option, value in pairwise(given) if option == "--set")
        settings["teacher.distillation.model"] = str(model)  # the page's is a run of the reader
        config = load_config(ROOT / given[2], [f"{key}={value}" for key, value in settings.items()])
        config = changed(config, data=digits.data)
        names = given[given.index("--techniques") + 1].split(",")
        run_stage = with_job_files(FakeStages(0.8))
        rows = run_ablation(config, tmp_path / f"out-{number}", names, "stack", 1, run_stage=run_stage)
        assert [row.technique for row in rows] == [BASE, *names]


def test_an_ablation_goes_on_where_it_was_stopped_and_reads_no_test(digits: Config, tmp_path: Path) -> None:
    stages = with_job_files(FakeStages(0.8, 0.9))
    seen: list[Row] = []

    def stop_after_three(row: Row) -> None:
        seen.append(row)
        if len(seen) == 3:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        run_ablation(digits, tmp_path, THREE, "alone", 2, run_stage=stages, on_row=stop_after_three)
    begun = len(stages.jobs)
    rows = run_ablation(digits, tmp_path, THREE, "alone", 2, run_stage=stages)
    assert len(rows) == 8
    assert [row.folder for row in rows[:3]] == [row.folder for row in seen]
    assert len({row.folder for row in rows}) == 8
    assert len(stages.jobs) > begun
    assert not stages.of("evaluate"), "an ablation is a choice, and test is not for choices"
    assert not stages.of("train", "control")
    before = len(stages.jobs)
    run_ablation(digits, tmp_path, THREE, "alone", 2, run_stage=stages)
    assert len(stages.jobs) == before, "typed again, nothing runs"
    assert {"rows.jsonl", "table.md", "ablation.png", "cells", "run.lock"} == {path.name for path in tmp_path.iterdir()}


def test_cells_share_the_stages_that_are_equal(digits: Config, tmp_path: Path) -> None:
    """Techniques of the selection leave teacher and labels as they are: one training and one pass for all cells."""
    stages = with_job_files(FakeStages(0.8, 0.9))
    run_ablation(digits, tmp_path, ["threshold", "per_class"], "alone", 1, run_stage=stages)
    assert len(stages.of("train", "teacher")) == 1
    assert len(stages.of("label")) == 1
    assert len(stages.of("train", "student")) == 3


def test_another_mode_reuses_the_runs_of_the_first(digits: Config, tmp_path: Path) -> None:
    stages = with_job_files(FakeStages(0.8, 0.9))
    run_ablation(digits, tmp_path, THREE, "alone", 1, run_stage=stages)
    before = len(stages.of("train", "student"))
    run_ablation(digits, tmp_path, THREE, "stack", 1, run_stage=stages)
    assert len(stages.of("train", "student")) == before + 2, "base and the first technique are there"


def test_the_figures_of_another_ablation_are_kept(digits: Config, tmp_path: Path) -> None:
    stages = with_job_files(FakeStages(0.8, 0.9))
    run_ablation(digits, tmp_path, ["mixup"], "alone", 2, run_stage=stages)
    run_ablation(digits, tmp_path, ["mixup"], "alone", 3, run_stage=stages)
    assert not (tmp_path / "earlier").exists(), "one more seed is the same ablation"
    before = (tmp_path / "rows.jsonl").read_bytes()
    run_ablation(digits, tmp_path, ["ema"], "alone", 1, run_stage=stages)
    (folder,) = (tmp_path / "earlier").iterdir()
    assert (folder / "rows.jsonl").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"rows.jsonl", "table.md", "ablation.png"}
    assert {row.technique for row in read_rows(tmp_path / "rows.jsonl")} == {BASE, "ema"}


def test_a_cell_is_judged_by_its_student_even_if_the_teacher_is_better(digits: Config, tmp_path: Path) -> None:
    stages = with_job_files(FakeStages(0.8, 0.3, 0.4))
    config = changed(digits, rounds=changed(digits.rounds, num_rounds=2, patience=2))
    rows = run_ablation(config, tmp_path, ["ema"], "alone", 1, run_stage=stages)
    assert [row.val_top1 for row in rows] == [0.4, 0.4], "the teacher, which is final, has 0.8"
    supervised = changed(digits, rounds=changed(digits.rounds, num_rounds=0))
    rows = run_ablation(supervised, tmp_path / "supervised", ["ema"], "alone", 1, run_stage=stages)
    assert [row.val_top1 for row in rows] == [0.8, 0.8]


def test_two_cells_at_a_time_give_the_same_rows_and_run_no_stage_twice(digits: Config, tmp_path: Path) -> None:
    names = (*THREE, "align")
    serial, beside = (with_job_files(FakeStages(0.8, 0.9)) for _ in range(2))
    expected = run_ablation(digits, tmp_path / "serial", names, "alone", 2, run_stage=serial)
    seen: list[Row] = []
    found = run_ablation(
        digits, tmp_path / "parallel", names, "alone", 2, run_stage=beside, on_row=seen.append, parallel=2
    )
    assert found == expected == read_rows(tmp_path / "parallel" / "rows.jsonl")
    assert sorted(seen, key=found.index) == found
    assert sorted(job.out.name for job in beside.jobs) == sorted(job.out.name for job in serial.jobs)


@pytest.mark.parametrize("error", [UserError("bad"), Interrupted("stopped")])
def test_what_ends_one_of_two_cells_ends_the_other_and_begins_no_third(
    digits: Config, tmp_path: Path, error: BaseException
) -> None:
    stop, both, begun = threading.Event(), threading.Barrier(2), list[str]()

    def run_stage(job: Job, lock_fd: int) -> None:
        begun.append(job.out.name)
        both.wait(600)
        if job.out.name == min(begun[:2]):
            raise error
        assert stop.wait(600), "the other run was not told"
        raise Interrupted("saved")

    with pytest.raises(type(error)) as told:
        run_ablation(digits, tmp_path, ["ema", "mixup"], "alone", 3, run_stage=run_stage, parallel=2, stop=stop)
    assert isinstance(error, Interrupted) or told.value is error
    assert len(begun) == 2
    with run_lock(tmp_path, wait_s=0.0):
        pass


def test_data_that_change_under_an_ablation_are_an_error(digits: Config, tmp_path: Path) -> None:
    shutil.copytree(str(digits.data.root), tmp_path / "packed")
    config = changed(digits, data=changed(digits.data, root=tmp_path / "packed"))

    def pack_more(row: Row) -> None:
        Image.new("RGB", (8, 8), (9, 99, 9)).save(tmp_path / "more.png")
        (tmp_path / "more").mkdir()
        (tmp_path / "more.png").rename(tmp_path / "more/1.png")
        pack(tmp_path / "more", tmp_path / "packed", split="unlabeled")

    stages = with_job_files(FakeStages(0.8, 0.9))
    with pytest.raises(UserError, match=r"the data changed while the ablation in .* was under way"):
        run_ablation(config, tmp_path / "out", ["ema"], "alone", 1, run_stage=stages, on_row=pack_more)


def test_a_moved_ablation_goes_on(digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = with_job_files(FakeStages(0.8, 0.9))
    rows = run_ablation(digits, tmp_path / "a", ["ema"], "alone", 1, run_stage=stages)
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setattr(pipeline.ablation.ablate, "_flops", None)  # it would open inputs by their old paths
    assert run_ablation(digits, tmp_path / "b", ["ema"], "alone", 1, run_stage=stages) == rows


def test_two_ablations_in_one_folder_at_a_time_are_refused(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.ablation.ablate, "run_lock", partial(run_lock, wait_s=0.0))
    with run_lock(tmp_path), pytest.raises(UserError, match="is in use by process"):
        run_ablation(digits, tmp_path, THREE, "alone", 1, run_stage=FakeStages(0.8))


@pytest.mark.parametrize("name", ["thesis.tex", "table.md"])
def test_a_folder_with_other_files_is_refused(digits: Config, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"has files, such as {name}, but is no ablation's folder"):
        run_ablation(digits, tmp_path, THREE, "alone", 1, run_stage=FakeStages(0.8))
    assert [path.name for path in tmp_path.iterdir()] == [name]
