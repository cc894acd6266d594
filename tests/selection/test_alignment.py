"""Aligned labels against their definition in numpy, in the selection, in the targets and in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.labeled_digits import WriteStage

from pipeline.config import Config, Data, Select
from pipeline.errors import UserError
from pipeline.report.gallery import inspect_pseudo_labels
from pipeline.selection.alignment import Aligned, alignment
from pipeline.selection.selection import read_selection
from pipeline.selection.summary import summary_table
from pipeline.selection.targets import Targets, open_selection, sharpen
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.jobs import SelectJob
from pipeline.stages.preamble import run_stage

F32Array = npt.NDArray[np.float32]
PRIOR = tuple(np.linspace(1, 3, 10) / np.linspace(1, 3, 10).sum())


class Stored:
    """Labels in memory."""

    def __init__(self, probs: F32Array) -> None:
        self.probs, self.num_classes = probs, probs.shape[1]
        self.label, self.confidence = probs.argmax(1).astype(np.int32), probs.max(1)
        self.log_odds = np.zeros(len(probs), np.float32)  # alignment makes its own

    def __len__(self) -> int:
        return len(self.probs)

    def probabilities(self, rows: npt.NDArray[np.integer]) -> F32Array:
        return self.probs[rows]


def some_labels(n: int, num_classes: int, seed: int) -> Stored:
    rng = np.random.default_rng(seed)
    return Stored(rng.dirichlet(np.linspace(0.2, 2, num_classes), n).astype(np.float32))


def by_definition(probs: F32Array, target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    weighted = probs.astype(np.float64) * (target + 1e-6) / (probs.mean(0, dtype=np.float64) + 1e-6)
    return np.asarray(weighted / weighted.sum(1, keepdims=True))


@given(st.integers(1, 50), st.integers(2, 12), st.integers(0, 2**32))
def test_labels_confidences_and_targets_are_those_of_the_definition(n: int, num_classes: int, seed: int) -> None:
    labels = some_labels(n, num_classes, seed)
    target = np.random.default_rng(seed + 1).dirichlet(np.ones(num_classes))
    expected = by_definition(labels.probs, target)
    found = Aligned(labels, alignment(labels, target))
    rtol = 5e-4  # means are in units of 2^-32, which is 2e-4 of the floor of a millionth
    np.testing.assert_allclose(found.probabilities(np.arange(n)), expected, rtol=rtol)
    sure = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2] > rtol
    np.testing.assert_array_equal(found.label[sure], expected.argmax(1)[sure])
    np.testing.assert_allclose(found.confidence, expected.max(1), rtol=rtol)
    others = np.sort(expected, axis=1)[:, :-1].sum(axis=1)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found.log_odds, np.log(expected.max(1) / others), rtol=1e-3, atol=1e-3)


@given(st.integers(1, 60), st.integers(0, 2**32))
def test_the_order_of_rows_changes_no_bit(n: int, seed: int) -> None:
    labels, order = some_labels(n, 5, seed), np.random.default_rng(seed).permutation(n)
    target = np.full(5, 0.2)
    weights, permuted = (alignment(one, target) for one in (labels, Stored(labels.probs[order])))
    np.testing.assert_array_equal(weights, permuted)
    np.testing.assert_array_equal(
        Aligned(labels, weights).log_odds[order], Aligned(Stored(labels.probs[order]), weights).log_odds
    )


def test_log_odds_still_rank_where_confidences_are_one() -> None:
    probs = np.array([[1, 1e-20, 1e-22], [1, 1e-25, 1e-22], [1, 1e-20, 1e-20]], np.float32)
    found = Aligned(Stored(probs[:2]), np.array([0.5, 1, 2]))
    assert found.confidence.tolist() == [1, 1]
    np.testing.assert_allclose(found.log_odds, -np.log([2e-20 + 4e-22, 2e-25 + 4e-22]), rtol=1e-6)


def test_a_class_that_is_never_predicted_gets_a_finite_weight() -> None:
    probs = np.array([[0.5, 0.5, 0.0]], np.float32)
    found = Aligned(Stored(probs), alignment(Stored(probs), np.array([0.2, 0.3, 0.5])))
    np.testing.assert_allclose(found.probabilities(np.array([0])), [[0.4, 0.6, 0.0]], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the stage


def select_stage(tmp_path: Path, data: Data, labels: Path, **select: object) -> Path:
    out = tmp_path / f"select-{len(list(tmp_path.iterdir()))}"
    run_stage(SelectJob.of(Config(data=data, select=Select.model_validate(select)), out, 1, labels))
    return out


def test_a_selection_its_targets_and_its_pictures_see_aligned_labels(
    tmp_path: Path, data: Data, unlabeled: Dataset, write_stage: WriteStage, logits: F32Array
) -> None:
    biased = logits + np.linspace(2, 0, 10, dtype=np.float32)  # the teacher prefers the first classes
    labels = write_stage(biased)
    before = {path.name: path.read_bytes() for path in labels.iterdir()}
    probs = np.exp(biased - np.log(np.exp(biased).sum(1, keepdims=True)))
    expected = by_definition(probs, np.array(PRIOR))
    folder = select_stage(tmp_path, data, labels, align=True, prior=PRIOR, threshold=0.5)
    selection, store = open_selection(folder, unlabeled)
    np.testing.assert_array_equal(selection.rows, np.flatnonzero(expected.max(1) >= 0.5))
    assert [c["predicted"] for c in selection.summary["classes"]] == np.bincount(
        expected.argmax(1), minlength=10
    ).tolist()
    assert [c["predicted"] for c in selection.summary["classes"]] != np.bincount(probs.argmax(1), minlength=10).tolist()
    found = Targets(store, "soft", temperature=0.5).of_rows(selection.rows)
    np.testing.assert_allclose(found, sharpen(expected[selection.rows].astype(np.float32), 0.5), rtol=1e-3, atol=1e-7)
    hard = Targets(store, "hard").of_rows(selection.rows)
    np.testing.assert_array_equal(hard.argmax(1), expected[selection.rows].argmax(1))
    truth = unlabeled.truth()
    assert truth is not None
    shown = inspect_pseudo_labels(unlabeled, folder, data, 8)
    assert shown.accuracy == (expected.argmax(1) == truth).mean()
    assert {path.name: path.read_bytes() for path in labels.iterdir()} == before, "labels stay as the teacher said them"


def test_the_caption_says_that_the_figures_on_val_are_from_before_alignment(
    tmp_path: Path, data: Data, write_stage: WriteStage, logits: F32Array
) -> None:
    labels = write_stage(logits)
    for align, words in ((True, "of labels before alignment are right"), (False, "of such labels are right")):
        summary = read_selection(select_stage(tmp_path, data, labels, align=align)).summary
        summary["on_val"] = {"top1": 0.8, "ece": 0.1, "num_samples": 9, "temperatures": [1.0], "teachers_top1": [0.8]}
        assert words in str(summary_table(summary).caption)


def test_without_a_prior_the_shares_are_those_of_labeled_images_and_off_is_as_before(
    tmp_path: Path, data: Data, unlabeled: Dataset, write_stage: WriteStage, logits: F32Array
) -> None:
    labels = write_stage(logits)
    plain, aligned = (select_stage(tmp_path, data, labels, align=on) for on in (False, True))
    assert "weight" not in (plain / "selection.json").read_text()
    summary = open_selection(aligned, unlabeled)[0].summary
    labeled = open_split(data, "labeled")
    probs = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    weights = (np.bincount(labeled.labels) / len(labeled) + 1e-6) / (probs.mean(0, dtype=np.float64) + 1e-6)
    np.testing.assert_allclose([c["weight"] for c in summary["classes"]], weights, rtol=1e-5)


def test_a_prior_that_does_not_fit_is_refused(
    tmp_path: Path, data: Data, write_stage: WriteStage, logits: F32Array
) -> None:
    with pytest.raises(UserError, match=r"select\.prior needs 10 shares"):
        select_stage(tmp_path, data, write_stage(logits), align=True, prior=(0.5, 0.5))
