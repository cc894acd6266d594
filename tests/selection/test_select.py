from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from rich.console import Console
from support.labeled_digits import CLASSES, WriteStage

from pipeline.config import Config, Data, Select
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.report.plots import per_class
from pipeline.selection.rules import select
from pipeline.selection.selection import Selection, read_selection, write_selection
from pipeline.selection.stage import check_summary, find_notices, select_inputs
from pipeline.selection.summary import summary_table
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import fingerprint
from pipeline.stages.folder import is_finished, stage_record
from pipeline.stages.jobs import SelectJob
from pipeline.stages.kinds import KINDS
from pipeline.stages.preamble import run_stage

F32Array = npt.NDArray[np.float32]
FILES = ("selection.arrow", "selection.json")


def select_some(label: list[int], confidence: list[float], config: Select, num_classes: int = 3) -> Selection:
    probs = np.array(confidence)
    return select(
        np.array(label, np.int32),
        probs.astype(np.float32),
        np.log(probs / (1 - probs)).astype(np.float32),
        np.arange(len(label), dtype=np.uint64),
        config=config,
        classes=[f"c{i}" for i in range(num_classes)],
        labeled_prior=np.full(num_classes, 1 / num_classes),
        seed=0,
    )


# ------------------------------------------------------------------------------------------------------------ the stage


def job_of(tmp_path: Path, data: Data, labels: Path, config: Select | None = None, out: str = "select") -> SelectJob:
    return SelectJob.of(Config(data=data, select=config or Select()), tmp_path / out, 1, labels)


def test_the_stage_writes_its_record_selection_and_summary(
    tmp_path: Path,
    data: Data,
    unlabeled: Dataset,
    write_stage: WriteStage,
    logits: F32Array,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = job_of(tmp_path, data, write_stage(logits), Select(threshold=0.6))
    run_stage(job)
    selection, record = read_selection(job.out), stage_record(job.out)
    assert record["fingerprint"] == fingerprint("select", KINDS["select"].version, select_inputs(job))
    assert record["outputs"] == {
        "labels": "../label",
        "num_rows": len(unlabeled),
        "num_selected": len(selection.rows),
        "num_copies": int(selection.copies.sum()),
    }
    labeled = open_split(data, "labeled")
    assert [c["labeled_prior"] for c in selection.summary["classes"]] == (
        np.bincount(labeled.labels) / len(labeled)
    ).tolist()
    assert [c["predicted"] for c in selection.summary["classes"]] == np.bincount(logits.argmax(1)).tolist()
    assert min(c["threshold"] or 1 for c in selection.summary["classes"]) >= 0.6
    printed = capsys.readouterr().out
    assert all(name.split()[0] in printed for name in CLASSES), "a class name with brackets is shown as it is"


def test_a_finished_stage_is_not_run_again(
    tmp_path: Path, data: Data, write_stage: WriteStage, logits: F32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, data, write_stage(logits))
    run_stage(job)
    monkeypatch.setattr("pipeline.selection.stage.LabelStore", None)
    run_stage(job)


@pytest.mark.parametrize(
    ("interrupted", "present"),
    [("pipeline.selection.selection.write_json", FILES[:1]), ("pipeline.stages.preamble.finish_folder", FILES)],
)
def test_an_interrupted_stage_ends_with_the_same_bytes(
    tmp_path: Path,
    data: Data,
    write_stage: WriteStage,
    logits: F32Array,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: str,
    present: tuple[str, ...],
) -> None:
    labels = write_stage(logits)
    run_stage(job_of(tmp_path, data, labels, out="whole"))
    job = job_of(tmp_path, data, labels, out="killed")
    with monkeypatch.context() as patch:
        patch.setattr(interrupted, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stage(job)
    assert tuple(name for name in FILES if (job.out / name).exists()) == present
    assert not is_finished(job.out)
    run_stage(job)
    for name in (*FILES, "stage.json"):
        assert (job.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def _interrupt(*args: object, **outputs: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_with_other_settings_is_refused(
    tmp_path: Path, data: Data, write_stage: WriteStage, logits: F32Array
) -> None:
    labels = write_stage(logits)
    run_stage(job_of(tmp_path, data, labels))
    with pytest.raises(UserError, match=r"threshold: not set -> 0\.7"):
        run_stage(job_of(tmp_path, data, labels, Select(threshold=0.7)))
    run_stage(job_of(tmp_path, data, labels, Select(threshold=0.5), out="other"))
    with pytest.raises(UserError, match=r"threshold: 0\.5 -> 0\.7"):
        run_stage(job_of(tmp_path, data, labels, Select(threshold=0.7), out="other"))


def test_selecting_never_reads_the_truth(
    tmp_path: Path, data: Data, write_stage: WriteStage, logits: F32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = write_stage(logits)

    def forbidden(*args: object) -> None:
        raise AssertionError("truth was read")

    monkeypatch.setattr(Dataset, "truth", forbidden)
    monkeypatch.setattr("pipeline.shards.dataset.truth_as", forbidden)
    run_stage(job_of(tmp_path, data, labels))


def test_a_vanished_class_is_shown_then_refused(
    tmp_path: Path,
    data: Data,
    unlabeled: Dataset,
    write_stage: WriteStage,
    logits: F32Array,
    capsys: pytest.CaptureFixture[str],
) -> None:
    four = unlabeled.classes.index("four")
    blind = logits.copy()
    blind[:, four] = -20
    labels = write_stage(blind)
    with pytest.raises(
        UserError, match=r"no pseudo-label of class `four` \(0 predicted\).*select\.allow_empty_classes"
    ):
        run_stage(job_of(tmp_path, data, labels))
    assert "four" in capsys.readouterr().out
    assert not (tmp_path / "select" / "selection.arrow").exists()
    run_stage(job_of(tmp_path, data, labels, Select(allow_empty_classes=True), out="allowed"))
    assert read_selection(tmp_path / "allowed").summary["classes"][four]["threshold"] is None


# ------------------------------------------------------------------------------------------------------------ bad input


def test_nothing_selected_is_an_error_that_names_the_threshold() -> None:
    config = Select(threshold=0.99, allow_empty_classes=True)
    with pytest.raises(UserError, match=r"select\.threshold 0\.99 leaves none of 2 .*at least 0\.90\); lower"):
        check_summary(select_some([0, 1], [0.9, 0.6], config).summary, config)


def test_a_class_that_the_prior_excludes_may_vanish() -> None:
    config = Select(balance="prior", prior=(1.0, 1.0, 0.0))
    selection = select_some([0, 1, 2], [0.9, 0.6, 0.7], config)
    assert selection.rows.tolist() == [0, 1]
    check_summary(selection.summary, config)


@pytest.mark.parametrize("prior", [(0.5, 0.5), (1.0, -0.5, 0.5), (0.0, 0.0, 0.0)])
def test_a_prior_that_does_not_fit_is_refused(prior: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"select\.prior needs 3 shares, one per class, none negative, not \["):
        select_some([0, 1], [0.9, 0.6], Select(balance="prior", prior=prior))


def test_nan_and_labels_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="row 1 has NaN log-odds"):
        select_some([0, 1], [0.9, float("nan")], Select())
    with pytest.raises(UserError, match=r"must be in 0\.\.2, found 0\.\.3"):
        select_some([0, 3], [0.9, 0.8], Select())


def test_a_class_mix_unlike_the_labeled_one_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    label = [0] * 8 + [1, 2]
    with caplog.at_level(logging.WARNING, "selftrain.select"):
        check_summary(select_some(label, [0.9] * 10, Select()).summary, Select())
        assert "total variation 0.47; most for `c0`: 80.0% predicted, 33.3% labeled" in caplog.text
        assert "select.balance" in caplog.text
        caplog.clear()
        check_summary(select_some([0, 1, 2], [0.9] * 3, Select()).summary, Select())
        assert not caplog.records


@pytest.mark.parametrize(
    ("filter", "fix"),
    [
        ({"threshold": 0.95}, r"lower it to 0\.50, which leaves a tenth or more, set it to adaptive, or take"),
        ({"share": 0.001}, r"raise it, e\.g\. to 0\.5"),
    ],
)
def test_a_filter_that_leaves_next_to_nothing_is_a_named_warning(filter: dict[str, float], fix: str) -> None:
    config = Select.model_validate(filter)
    label, confidence = [0, 1, 2] * 400, [0.99] * 3 + [0.51] * 1197
    (notice,) = find_notices(select_some(label, confidence, config).summary, config)
    assert notice["name"] == "few-pseudo-labels"
    assert re.search(r"leaves [36] of 1,200 unlabeled images \(0\.[25]", notice["text"])
    assert re.search(fix, notice["text"])
    per_class = Select(per_class=1)  # which is a size that somebody wants
    assert not find_notices(select_some(label, confidence, per_class).summary, per_class)


def test_the_warning_is_in_the_log_and_in_the_summary(
    tmp_path: Path,
    data: Data,
    write_stage: WriteStage,
    logits: F32Array,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.selection.stage.FEW", 0.9)
    labels = write_stage(logits)
    run_stage(job_of(tmp_path, data, labels, Select(threshold=0.9)))
    notices = read_selection(tmp_path / "select").summary["warnings"]
    assert [notice["name"] for notice in notices] == ["few-pseudo-labels", "confidences-not-calibrated"]
    for notice in notices:
        assert f"{notice['name']}: {notice['text']}" in caplog.text
    caplog.clear()
    run_stage(job_of(tmp_path, data, labels, Select(), out="all"))
    assert "warnings" not in read_selection(tmp_path / "all").summary
    assert "num_left" not in read_selection(tmp_path / "all").summary


def test_thresholds_per_class_are_in_the_table_and_the_summary() -> None:
    selection = select_some([0, 0, 1, 1], [0.9, 0.7, 0.6, 0.5], Select(threshold="adaptive"), num_classes=2)
    assert selection.rows.tolist() == [0, 2]
    assert [c["cut"] for c in selection.summary["classes"]] == pytest.approx([0.8, 0.55])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(selection.summary))
    assert "0.8000" in capture.get()
    assert "cut" in capture.get()


def test_the_threshold_is_compared_in_float32() -> None:
    """0.95 as float32 is a little less than 0.95: a confidence of just that must pass."""
    assert len(select_some([0], [0.95], Select(threshold=0.95)).rows) == 1


# ------------------------------------------------------------------------------------------------------- files and show


@pytest.mark.parametrize("name", ["selection.arrow", "selection.json"])
def test_a_damaged_selection_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write_selection(tmp_path, select_some([0, 1, 2], [0.9] * 3, Select()))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(UserError, match=name):
        read_selection(tmp_path)


def test_a_selection_reads_as_it_was_written(tmp_path: Path) -> None:
    written = select_some([0, 1, 1, 2] * 100, [0.9] * 400, Select(max_copies=300))
    write_selection(tmp_path, written)
    read = read_selection(tmp_path)
    np.testing.assert_array_equal(read.rows, written.rows)
    np.testing.assert_array_equal(read.copies, written.copies)
    assert (read.rows.dtype, read.copies.dtype) == (np.uint32, np.uint16)
    assert read.summary == written.summary == read_json(tmp_path / "selection.json")


def test_the_plot_can_be_read() -> None:
    with Image.open(io.BytesIO(per_class(select_some([0, 1, 2], [0.9] * 3, Select()).summary))) as image:
        assert image.width > 500


def test_a_thousand_classes_fit_the_table_and_the_plot() -> None:
    selection = select_some(list(range(1000)), [0.5 + i / 2001 for i in range(1000)], Select(), num_classes=1000)
    with Image.open(io.BytesIO(per_class(selection.summary))) as image:
        assert image.width < 3000
    console = Console(width=120)
    with console.capture() as capture:
        console.print(summary_table(selection.summary))
    assert "40 of 1000 classes" in capture.get()
