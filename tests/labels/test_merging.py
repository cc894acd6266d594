"""Labels that are merged without a pass over the images: of label stages, and of a user's scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from support.labeled_digits import WriteStage
from support.scores import write_scores

from pipeline.config import Config, Data, OtherLabels, changed
from pipeline.errors import UserError
from pipeline.labels.merging import labels_fingerprint
from pipeline.labels.scores import read_scores
from pipeline.labels.store import LabelStore
from pipeline.runs.loop import run_loop
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import finish_folder, open_folder, stage_record
from pipeline.stages.jobs import Job, MergeJob, SelectJob
from pipeline.stages.preamble import run_stage


def merged(config: Config, out: Path, *others: tuple[Path, float]) -> Path:
    label = changed(config.label, others=tuple(OtherLabels(labels=path, weight=weight) for path, weight in others))
    run_stage(MergeJob.of(changed(config, label=label), out, 1))
    return out


@pytest.fixture
def config(data: Data) -> Config:
    return Config(data=data)


def test_labels_are_the_weighted_mean_of_probabilities(
    config: Config, unlabeled: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path
) -> None:
    stages = [write_stage(logits, "label-0"), write_stage(np.ascontiguousarray(-logits[::-1]), "label-1", teacher="t1")]
    rows = np.arange(len(unlabeled))
    first, second = (LabelStore(stage, unlabeled).probabilities(rows).astype(np.float64) for stage in stages)
    scores = np.full((len(unlabeled), len(unlabeled.classes)), 1 / len(unlabeled.classes))
    table = write_scores(tmp_path / "clip.csv", unlabeled, scores)
    out = merged(config, tmp_path / "merge", (stages[0], 1.0), (stages[1], 3.0), (table, 1.0))
    found, expected = LabelStore(out, unlabeled), (first + 3 * second + scores) / 5
    np.testing.assert_allclose(found.probabilities(rows), expected, atol=1e-6)
    np.testing.assert_array_equal(found.label, expected.argmax(1))
    np.testing.assert_allclose(found.confidence, expected.max(1), atol=1e-6)
    others = expected.sum(1) - expected.max(1)
    np.testing.assert_allclose(found.log_odds, np.log(expected.max(1) / others), atol=1e-4)


def test_labels_of_another_order_of_classes_are_refused(
    config: Config, unlabeled: Dataset, logits: np.ndarray, write_stage: WriteStage, tmp_path: Path
) -> None:
    out = merged(config, tmp_path / "merge", (write_stage(logits, "label-0"), 1.0))
    other = replace(unlabeled, classes=unlabeled.classes[::-1])
    with pytest.raises(UserError, match="other classes, or of these in another order"):
        LabelStore(out, other)


def test_scores_name_images_with_or_without_shard_folder_and_extension(unlabeled: Dataset, tmp_path: Path) -> None:
    scores = np.random.default_rng(0).dirichlet(np.ones(len(unlabeled.classes)), len(unlabeled))
    keys = [unlabeled.key(row) for row in range(len(unlabeled))]
    expected = read_scores(write_scores(tmp_path / "a.csv", unlabeled, scores), unlabeled).probabilities
    np.testing.assert_allclose(expected, scores, atol=1e-6)
    short = [f"{key.partition('/')[2]}.png" for key in keys]
    found = read_scores(write_scores(tmp_path / "b.csv", unlabeled, scores, short), unlabeled).probabilities
    np.testing.assert_array_equal(found, expected)


@dataclass
class Keys:
    """A data set of two classes, of which its keys are known alone."""

    keys: list[str]
    classes: tuple[str, ...] = ("cat", "dog")

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        return self.keys[row]


def read_named(folder: Path, keys: list[str], names: list[str], score: str = "1") -> list[float]:
    """The first class's score per key, of a table whose n-th name has the n-th multiple of 0.1."""
    lines = [f"{name},{number / 10},{1 - number / 10}" for number, name in enumerate(names[:-1])]
    path = folder / "scores.csv"
    path.write_text("\n".join(["image,cat,dog", *lines, f"{names[-1]},{score},0"]) + "\n")
    return [round(float(row[0]), 6) for row in read_scores(path, cast(Dataset, Keys(keys))).probabilities]


def test_scores_find_names_with_dots_and_odd_letters(tmp_path: Path) -> None:
    keys = [f"u/{key}" for key in ("img", "img%2E1", "img%2E2", "50%25 größe", "img.3")]
    names = ["img", "img.1", "img.2.jpg", "50% größe.jpg", "img.3"]
    assert read_named(tmp_path, keys, names) == [0, 0.1, 0.2, 0.3, 1]
    assert read_named(tmp_path, keys, [*names[:-1], "", "img.3"]) == [0, 0.1, 0.2, 0.3, 1]


def test_a_row_of_scores_that_may_mean_two_images_is_refused(tmp_path: Path) -> None:
    keys = ["u/a/1", "u/b/1"]
    assert read_named(tmp_path, keys, ["a/1.jpg", "b/1.jpg"]) == [0, 1]
    with pytest.raises(UserError, match=r"1\.jpg may be 'u/a/1' or 'u/b/1'; write the path with its folder"):
        read_named(tmp_path, keys, ["1.jpg"])


def test_a_score_that_is_no_number_and_a_column_that_is_there_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scores\.csv: a score is no number"):
        read_named(tmp_path, ["u/1"], ["1"], score="sure")
    (tmp_path / "twice.csv").write_text("image,cat,dog,cat\n1,1,0,0\n")
    with pytest.raises(UserError, match="has 2 columns 'cat'"):
        read_scores(tmp_path / "twice.csv", cast(Dataset, Keys(["u/1"])))


def test_labels_that_are_not_there_are_refused_before_the_teacher_is_trained(config: Config, tmp_path: Path) -> None:
    def no_stage(job: Job, lock_fd: int) -> None:
        pytest.fail(f"{job.kind} ran")

    (tmp_path / "folder").mkdir()
    for name, what in (("clip.csv", "no such file"), ("folder", "a folder without a finished stage")):
        label = changed(config.label, others=(OtherLabels(labels=tmp_path / name),))
        with pytest.raises(UserError, match=f"{name} is neither a label stage nor a table of scores: it is {what}"):
            run_loop(changed(config, label=label), tmp_path / "run", run_stage=no_stage)
    open_folder(tmp_path / "train", "train", 1, StageInputs({}, {}), {})
    finish_folder(tmp_path / "train", [])
    with pytest.raises(UserError, match="train is a train stage, not a label stage"):
        labels_fingerprint(tmp_path / "train")


def test_scores_that_do_not_sum_to_1_are_logits_and_that_is_said(
    unlabeled: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.random.default_rng(0).normal(size=(len(unlabeled), len(unlabeled.classes)))
    found = read_scores(write_scores(tmp_path / "a.csv", unlabeled, values), unlabeled).probabilities
    np.testing.assert_allclose(found, np.exp(values) / np.exp(values).sum(1, keepdims=True), atol=1e-5)
    assert "taken as logits" in caplog.text


def test_a_table_that_lacks_an_image_or_a_class_is_refused(unlabeled: Dataset, tmp_path: Path) -> None:
    scores = np.full((len(unlabeled), len(unlabeled.classes)), 0.1)
    table = write_scores(tmp_path / "a.csv", unlabeled, scores)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-3]))
    with pytest.raises(UserError, match=r"a\.csv has no row for 3 of \d+ unlabeled images"):
        read_scores(table, unlabeled)
    table.write_text("\n".join([lines[0].replace(unlabeled.classes[4], "other"), *lines[1:]]))
    with pytest.raises(UserError, match=rf"no column '{unlabeled.classes[4]}'"):
        read_scores(table, unlabeled)
    table.write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(UserError, match="two rows for image"):
        read_scores(table, unlabeled)
    table.write_text("\n".join([lines[0], lines[1].replace("0.1", "nan"), *lines[2:]]))
    with pytest.raises(UserError, match="is not a finite number"):
        read_scores(table, unlabeled)


@pytest.fixture
def over_sure(data: Data, unlabeled: Dataset) -> tuple[np.ndarray, list[str]]:
    """Scores of a model that is three times as sure as it should be, of the unlabeled images and then of val."""
    val = open_split(data, "val")
    truth = np.concatenate([cast(np.ndarray, unlabeled.truth()), val.labels])
    logits = np.random.default_rng(1).normal(size=(len(truth), len(val.classes)))
    logits[np.arange(len(truth)), truth] += 2
    powers = np.exp(3 * logits)
    keys = [dataset.key(row) for dataset in (unlabeled, val) for row in range(len(dataset))]
    return powers / powers.sum(1, keepdims=True), keys


def test_scores_of_a_table_that_has_val_are_calibrated(
    config: Config, unlabeled: Dataset, over_sure: tuple[np.ndarray, list[str]], tmp_path: Path
) -> None:
    """The temperature is the one that a scalar minimizer finds, and the summary has the error that is left."""
    config = changed(config, label=changed(config.label, temperature="auto"))
    scores, keys = over_sure
    table = write_scores(tmp_path / "clip.csv", unlabeled, scores, keys)
    out = merged(config, tmp_path / "merge", (table, 1.0))
    logs, labels = np.log(scores), open_split(config.data, "val").labels

    def nll(temperature: float) -> float:
        cooled = logs[len(unlabeled) :] / temperature
        return float(np.mean(logsumexp(cooled, axis=1) - cooled[np.arange(len(labels)), labels]))

    best = float(minimize_scalar(nll, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-6}).x)
    (quality,) = stage_record(out)["outputs"]["scores"]
    assert quality["temperature"] == pytest.approx(best, rel=1e-3)
    assert best > 1.5
    found = LabelStore(out, unlabeled).probabilities(np.arange(len(unlabeled)))
    np.testing.assert_allclose(found, softmax(logs[: len(unlabeled)] / best, axis=1), atol=1e-3)
    run_stage(SelectJob.of(config, tmp_path / "select", 1, out))
    (shown,) = json.loads((tmp_path / "select" / "selection.json").read_text())["scores_on_val"]
    assert (shown["table"], shown["ece"]) == ("clip.csv", quality["ece"])


def test_scores_without_val_are_taken_as_they_are_and_that_is_said(
    config: Config,
    unlabeled: Dataset,
    over_sure: tuple[np.ndarray, list[str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = changed(config, label=changed(config.label, temperature="auto"))
    scores, keys = over_sure
    table = write_scores(tmp_path / "clip.csv", unlabeled, scores[:-1], keys[:-1])
    out = merged(config, tmp_path / "merge", (table, 1.0))
    num = len(keys) - len(unlabeled)
    assert f"clip.csv is not calibrated: it has rows for {num - 1} of {num} val images" in caplog.text
    rows = np.arange(len(unlabeled))
    np.testing.assert_allclose(LabelStore(out, unlabeled).probabilities(rows), scores[: len(rows)], atol=1e-6)
    assert "scores" not in stage_record(out)["outputs"]
