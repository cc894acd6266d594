"""Labels of val that a label stage stores: what a merge and an alignment know from them, and when they know nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from support.labeled_digits import WriteStage
from support.scores import write_scores

from pipeline.config import Config, Data, Label, OtherLabels, Select, changed
from pipeline.errors import UserError
from pipeline.labels.on_val import ON_VAL, LabelsOnVal, as_stored, read_on_val, write_on_val
from pipeline.labels.scores import read_calibrated
from pipeline.labels.store import LabelStore
from pipeline.selection.selection import read_selection
from pipeline.selection.summary import summary_table
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.folder import stage_record
from pipeline.stages.jobs import MergeJob, SelectJob
from pipeline.stages.preamble import run_stage


def says(val: Dataset, seed: int) -> LabelsOnVal:
    """What an invented teacher says of val."""
    logits = np.random.default_rng(seed).normal(size=(len(val), 10))
    logits[np.arange(len(val)), val.labels] += 1
    probabilities = softmax(logits, axis=1).astype(np.float32)
    return LabelsOnVal(val.fingerprint, probabilities, val.labels)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The equation of Guo 2017, section 2, bin by bin."""
    sure, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = [(sure > b / 15) & (sure <= (b + 1) / 15) for b in range(15)]
    return float(sum(abs(right[b].sum() - sure[b].sum()) for b in bins) / len(truth))


@pytest.fixture
def val(data: Data) -> Dataset:
    return open_split(data, "val")


@pytest.fixture
def config(data: Data) -> Config:
    return Config(data=data, label=Label(temperature="auto", top_k=3))


def merged(config: Config, out: Path, *others: Path) -> dict[str, Any]:
    """The outputs of a merge, of which each has one more weight than the one before."""
    label = changed(config.label, others=[OtherLabels(labels=path, weight=1 + n) for n, path in enumerate(others)])
    run_stage(MergeJob.of(changed(config, label=label), out, 1))
    return dict(stage_record(out)["outputs"])


def test_a_merge_knows_what_the_mean_of_label_stages_and_tables_is_worth_on_val(
    config: Config, val: Dataset, unlabeled: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path
) -> None:
    """The mean is as label files would have it: from the fourth class on it is an even rest."""
    stage, said = write_stage(logits, top_k=3), says(val, 1)
    write_on_val(stage, said)
    scores = softmax(np.random.default_rng(2).normal(size=(len(unlabeled) + len(val), 10)), axis=1)
    keys = [dataset.key(row) for dataset in (unlabeled, val) for row in range(len(dataset))]
    table = write_scores(tmp_path / "clip.csv", unlabeled, scores, keys)
    outputs = merged(config, tmp_path / "merge", stage, table)
    of_table = read_calibrated(table, unlabeled, val).on_val
    assert of_table is not None
    mean = (said.probabilities.astype(np.float64) + 2 * of_table.probabilities) / 3
    expected = mean.copy()
    for row in expected:
        rest = np.argsort(-row)[3:]
        row[rest] = row[rest].mean()
    found = read_on_val(tmp_path / "merge")
    assert found is not None
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert outputs["val"]["ece"] == pytest.approx(calibration_error(expected, val.labels), abs=1e-6)
    assert outputs["val"]["top1"] == (expected.argmax(1) == val.labels).mean()
    run_stage(SelectJob.of(config, tmp_path / "select", 1, tmp_path / "merge"))
    summary = read_selection(tmp_path / "select").summary
    assert summary["on_val"]["ece"] == outputs["val"]["ece"]
    assert summary["on_val"]["teachers_top1"] == [said.metrics().top1, of_table.metrics().top1]


def test_val_is_stored_as_a_label_file_says_the_same_probabilities(
    unlabeled: Dataset, logits: np.ndarray, write_stage: WriteStage
) -> None:
    for top_k in (1, 3, 10, 20):
        stored = LabelStore(write_stage(logits, f"label-{top_k}", top_k), unlabeled)
        found = as_stored(softmax(logits, axis=1), top_k)
        np.testing.assert_allclose(found, stored.probabilities(np.arange(len(unlabeled))), atol=1e-6)


@pytest.mark.parametrize("lacks", ["the file", "this val"])
def test_a_merge_says_nothing_of_val_where_one_of_its_labels_says_nothing(
    config: Config, val: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path, lacks: str
) -> None:
    """An older version wrote no such file, and a label stage of another run may have another val."""
    stages = [write_stage(logits, f"label-{n}", teacher=f"t{n}") for n in range(2)]
    write_on_val(stages[0], says(val, 1))
    if lacks == "this val":
        write_on_val(stages[1], replace(says(val, 2), val="another"))
    assert "val" not in merged(config, tmp_path / "merge", *stages)
    assert not (tmp_path / "merge" / ON_VAL).exists()


def test_the_labels_of_val_change_no_fingerprint_and_no_label(
    config: Config, val: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path
) -> None:
    """So that what was labeled before they were stored is not labeled again."""
    stage = write_stage(logits)
    merged(config, tmp_path / "before", stage)
    write_on_val(stage, says(val, 1))
    merged(config, tmp_path / "after", stage)
    records = [stage_record(tmp_path / name) for name in ("before", "after")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    digests = [{n: d for n, d in record["digests"].items() if n != ON_VAL} for record in records]
    assert digests[0] == digests[1]


def test_the_caption_says_what_aligned_labels_are_worth(
    config: Config, val: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path
) -> None:
    """Labels of val are aligned by the weights of the pool, as the summary has them."""
    stage = write_stage(logits)
    write_on_val(stage, said := says(val, 1))
    aligning = changed(config, select=Select(align=True, prior=tuple(range(1, 11))))
    run_stage(SelectJob.of(aligning, tmp_path / "select", 1, stage))
    summary = read_selection(tmp_path / "select").summary
    weighted = said.probabilities.astype(np.float64) * [line["weight"] for line in summary["classes"]]
    expected = weighted / weighted.sum(1, keepdims=True)
    quality = summary["aligned_on_val"]
    assert quality["top1"] == (expected.argmax(1) == val.labels).mean() != said.metrics().top1
    assert quality["ece"] == pytest.approx(calibration_error(expected, val.labels), abs=1e-6)
    caption = " ".join(str(summary_table(summary).caption).split())
    assert f"on val {quality['top1']:.1%} of such labels are right, calibration error {quality['ece']:.1%}" in caption
    assert "before alignment" not in caption
    run_stage(SelectJob.of(config, tmp_path / "plain", 1, stage))
    assert "aligned_on_val" not in json.loads((tmp_path / "plain" / "selection.json").read_text())


def test_a_broken_file_is_refused_by_name(val: Dataset, tmp_path: Path) -> None:
    write_on_val(tmp_path, replace(says(val, 1), truth=val.labels[1:]))
    with pytest.raises(UserError, match=rf"{ON_VAL} cannot be read .*delete this file"):
        read_on_val(tmp_path)
    (tmp_path / ON_VAL).write_bytes((tmp_path / ON_VAL).read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{ON_VAL} cannot be read"):
        read_on_val(tmp_path)
