"""Ablations: which runs they make, what is reused, and that the table claims no more than the rows show."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from support.fake_stages import FakeStages

import pipeline.ablation.ablate
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import BASE, Mode, all_techniques, plan_cells
from pipeline.ablation.rows import Row, read_rows
from pipeline.config import Config, Mixup, changed, parse
from pipeline.errors import Interrupted, UserError
from pipeline.packing.pack import pack
from pipeline.stages.jobs import Job
from pipeline.stages.lock import run_lock
from pipeline.techniques import TECHNIQUES

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


# --------------------------------------------------------------------------------------------------------- the cells


def on_in(config: Config, name: str) -> bool:
    row = TECHNIQUES[name]
    value = config.student
    for part in row.switch.split(".")[1:]:
        value = getattr(value, part)
    return value != row.off


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("alone", {BASE: "", "dropout": "dropout", "ema": "ema", "mixup": "mixup"}),
        (
            "drop-one",
            {BASE: "dropout ema mixup", "dropout": "ema mixup", "ema": "dropout mixup", "mixup": "dropout ema"},
        ),
        ("stack", {BASE: "", "dropout": "dropout", "ema": "dropout ema", "mixup": "dropout ema mixup"}),
    ],
)
def test_a_mode_says_which_techniques_are_on_in_which_cell(digits: Config, mode: str, expected: dict[str, str]) -> None:
    cells = plan_cells(digits, THREE, mode)  # type: ignore[arg-type]
    assert {cell.name: " ".join(cell.on) for cell in cells} == expected
    for cell in cells:
        assert [name for name in THREE if on_in(cell.config, name)] == list(cell.on)
    others = ["base", "dropout", "ema"] if mode == "stack" else [BASE] * 3
    assert [cell.against for cell in cells] == ["", *others]


def test_a_technique_that_the_config_has_on_keeps_its_settings(digits: Config) -> None:
    config = changed(digits, student=changed(digits.student, mixup=Mixup(alpha=0.9)))
    (_, cell) = plan_cells(config, ["mixup"], "alone")
    assert cell.config.student.mixup == Mixup(alpha=0.9)
    assert cell.config.teacher.mixup is None, "only the student has it in this config"
    (_, cell) = plan_cells(digits, ["mixup"], "alone")
    assert cell.config.student.mixup == cell.config.teacher.mixup == Mixup(alpha=0.2, probability=0.5)


def test_a_name_with_no_before_it_takes_the_technique_away(digits: Config) -> None:
    """So that "no bias decay" is a row of the stack of Bag of Tricks, whose base decays everything."""
    base, spared, smoothed = plan_cells(digits, ["no-decay_vectors", "label_smoothing"], "stack")
    assert [cell.config.student.optimizer.decay_vectors for cell in (base, spared, smoothed)] == [True, False, False]
    assert [cell.config.teacher.label_smoothing for cell in (base, spared, smoothed)] == [0, 0, 0.1]
    assert (spared.name, spared.on) == ("no-decay_vectors", ("no-decay_vectors",))
    with pytest.raises(UserError, match="names one twice"):
        plan_cells(digits, ["ema", "no-ema"], "alone")


def test_a_usual_value_may_follow_from_the_training(digits: Config) -> None:
    _, larger = plan_cells(digits, ["evaluation_size"], "alone")
    assert (digits.student.image_size, larger.config.student.evaluation_size) == (8, 10)


@pytest.mark.parametrize("name", [row.name for row in TECHNIQUES.values() if row.keys[0].startswith("training.")])
def test_each_technique_of_a_training_has_a_usual_value_unless_not_all_trainings_can_have_it(name: str) -> None:
    """A file, the names of modules, a network with max pooling, or an optimizer that has an eps."""
    of_some = ("start", "probe", "dropout_at", "fractional_pooling", "eps")
    assert (TECHNIQUES[name].on is None) == (name in of_some)


@pytest.mark.parametrize("mode", ["alone", "drop-one", "stack"])
def test_all_techniques_fit_into_one_config(digits: Config, mode: Mode) -> None:
    """Cells are parsed, so that whatever two techniques cannot share shows before the first run."""
    names = all_techniques(digits)
    assert {"mixup", "cutmix"} <= set(names)
    assert len(plan_cells(digits, names, mode)) == len(names) + 1


def test_cells_differ_in_nothing_but_the_switches(digits: Config) -> None:
    base, *cells = plan_cells(digits, THREE, "alone")
    for cell in cells:
        switches = TECHNIQUES[cell.name].switch_in(digits)
        a, b = (flat(c.config.model_dump(mode="json")) for c in (base, cell))
        different = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert different
        assert all(any(f"{key}.".startswith(f"{switch}.") for switch in switches) for key in different)


def flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name in value for k, v in flat(value[name], f"{prefix}.{name}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        (["mixupp"], "there is no technique 'mixupp', did you mean `mixup`"),
        (["ema", "ema"], "names one twice"),
        (["start"], "off in this config, and has no usual value"),
    ],
)
def test_what_cannot_be_ablated_is_an_error_that_says_why(digits: Config, techniques: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_cells(digits, techniques, "alone")


def test_a_technique_that_the_method_does_not_read_is_an_error(digits: Config) -> None:
    uda = parse(Config, {"method": "uda", "data": digits.data.model_dump(mode="json")}, "test")
    with pytest.raises(UserError, match="technique balance is not read by `method: uda`"):
        plan_cells(uda, ["balance"], "alone")
    assert "balance" not in all_techniques(uda)
    assert "mixup" not in all_techniques(uda), "UDA's learner does not mix"
    assert {"ema", "dropout", "randaugment"} <= set(all_techniques(uda))


# ---------------------------------------------------------------------------------------------------------- the runs


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
