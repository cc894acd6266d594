"""Ablations: which runs they make, what is reused, and that the table claims no more than the rows show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.fake_stages import FakeStages

import pipeline.ablation.ablate
from pipeline.ablation.ablate import run_ablation
from pipeline.ablation.cells import BASE, Mode, all_techniques, plan_cells
from pipeline.ablation.plot import draw_effects
from pipeline.ablation.rows import Row, effects, read_rows, table, write_rows
from pipeline.config import Config, Mixup, changed, parse
from pipeline.errors import Interrupted, UserError
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
    assert {"rows.jsonl", "table.md", "ablation.png", "cells"} == {path.name for path in tmp_path.iterdir()}


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


def test_a_folder_with_other_files_is_refused(digits: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"has files, such as thesis\.tex, but is no ablation's folder"):
        run_ablation(digits, tmp_path, THREE, "alone", 1, run_stage=FakeStages(0.8))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --------------------------------------------------------------------------------------------------------- the rows


def rows_of(mode: str, accuracies: dict[str, list[float]]) -> list[Row]:
    names = list(accuracies)
    return [
        Row(
            mode=mode,
            technique=name,
            against="" if name == BASE else names[names.index(name) - 1] if mode == "stack" else BASE,
            on=(),
            seed=seed,
            val_top1=value,
            num_val=1000,
            seconds=10.0 * (1 + names.index(name)),
            tflops=1.0,
            machine="a processor",
            commit="abc",
            folder=f"cells/{name}-{seed}",
        )
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


ACCURACIES = {BASE: [0.80, 0.82, 0.81], "mixup": [0.84, 0.85, 0.85], "ema": [0.81, 0.80, 0.83]}


def test_intervals_are_those_of_a_paired_t_test() -> None:
    for effect in effects(rows_of("alone", ACCURACIES)):
        pairs = 100 * np.array(ACCURACIES[effect.technique]) - 100 * np.array(ACCURACIES[BASE])
        expected = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
        assert effect.points == pytest.approx(pairs.mean())
        assert effect.interval == pytest.approx((expected.low, expected.high), abs=2e-3)


def test_drop_one_turns_the_difference_around() -> None:
    alone, dropped = (effects(rows_of(mode, ACCURACIES))[0] for mode in ("alone", "drop-one"))
    assert dropped.points == pytest.approx(-alone.points)
    assert dropped.time_ratio == pytest.approx(1 / alone.time_ratio)


def test_stack_compares_with_the_row_before() -> None:
    first, second = effects(rows_of("stack", ACCURACIES))
    assert first.points == pytest.approx(100 * (np.mean(ACCURACIES["mixup"]) - np.mean(ACCURACIES[BASE])))
    assert second.points == pytest.approx(100 * (np.mean(ACCURACIES["ema"]) - np.mean(ACCURACIES["mixup"])))


def test_a_technique_whose_interval_holds_zero_is_said_to_be_within_chance() -> None:
    text = table(rows_of("alone", ACCURACIES))
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "helps" in lines["mixup"]
    assert "within chance" in lines["ema"]
    one_seed = [row for row in rows_of("alone", ACCURACIES) if row.seed == 0]
    assert "one seed: nothing can be said" in table(one_seed)


def test_the_plot_is_redrawn_from_the_rows_alone(tmp_path: Path) -> None:
    rows = rows_of("alone", ACCURACIES)
    write_rows(tmp_path / "rows.jsonl", rows)
    again = read_rows(tmp_path / "rows.jsonl")
    assert again == rows
    assert draw_effects(again) == draw_effects(rows)
    assert draw_effects(rows)[:8] == b"\x89PNG\r\n\x1a\n"
    different = [replace(row, val_top1=0.5) if row.technique == "ema" else row for row in rows]
    assert draw_effects(different) != draw_effects(rows)


def test_a_file_without_rows_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="holds no rows of an ablation"):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="has no rows"):
        read_rows(tmp_path / "nothing.jsonl")


# ------------------------------------------------------------------------------------------------- what is published

PUBLISHED = Path(pipeline.__file__).parents[1] / "docs" / "ablations"


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_published_tables_are_those_of_their_rows(path: Path) -> None:
    """`python -m pipeline.ablation` draws them; nobody edits a figure."""
    page = (PUBLISHED.parent / "ablations.md").read_text()
    assert table(read_rows(path)) in page
    assert path.with_suffix(".png").exists()
    assert f"ablations/{path.stem}.png" in page
