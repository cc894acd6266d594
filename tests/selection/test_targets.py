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
from pipeline.files import read_json, write_json
from pipeline.labels.store import LabelStore
from pipeline.selection.targets import Targets, open_selection, sharpen, smooth
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.jobs import SelectJob
from pipeline.stages.preamble import run_stage

F32Array = npt.NDArray[np.float32]


def some_probs(seed: int, num_classes: int = 10) -> F32Array:
    return np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), 40).astype(np.float32)


def test_temperature_one_changes_no_bit() -> None:
    probs = some_probs(0)
    assert sharpen(probs, 1.0) is probs


@given(st.integers(0, 2**32), st.floats(0.05, 20))
def test_temperature_is_a_renormalized_power(seed: int, temperature: float) -> None:
    probs = some_probs(seed)
    with np.errstate(under="ignore"):
        expected = probs.astype(np.float64) ** (1 / temperature)
    expected /= expected.sum(1, keepdims=True)
    found = sharpen(probs, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_a_temperature_near_zero_gives_the_argmax_and_no_nan() -> None:
    probs = some_probs(1, num_classes=1000)
    np.testing.assert_allclose(sharpen(probs, 1e-4).max(1), 1, rtol=1e-6)


def test_hard_targets_are_the_labels_one_hot(write_stage: WriteStage, unlabeled: Dataset, logits: F32Array) -> None:
    targets = Targets(LabelStore(write_stage(logits), unlabeled), "hard")
    rows = np.array([250, 3, 3, 120])
    np.testing.assert_array_equal(targets.of_rows(rows), np.eye(10, dtype=np.float32)[logits[rows].argmax(1)])


def test_hard_targets_are_smoothed_and_soft_ones_are_not(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array
) -> None:
    store, rows = LabelStore(write_stage(logits), unlabeled), np.array([250, 3, 120])
    hard = Targets(store, "hard", smoothing=0.1).of_rows(rows)
    np.testing.assert_array_equal(hard, smooth(Targets(store, "hard").of_rows(rows), 0.1))
    np.testing.assert_allclose(hard.max(1), 0.91)
    np.testing.assert_allclose(hard.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(Targets(store, "soft", smoothing=0.1).of_rows(rows), store.probabilities(rows))


def select_stage(tmp_path: Path, data: Data, labels: Path, select: Select) -> Path:
    run_stage(SelectJob.of(Config(data=data, select=select), tmp_path / "select", 1, labels))
    return tmp_path / "select"


def test_selection_and_labels_open_from_the_select_stage_alone(
    tmp_path: Path, data: Data, unlabeled: Dataset, write_stage: WriteStage, logits: F32Array
) -> None:
    labels = write_stage(logits)
    folder = select_stage(tmp_path, data, labels, Select(threshold=0.5))
    (tmp_path / "run").mkdir()
    for part in (folder, labels):
        part.rename(tmp_path / "run" / part.name)  # a run folder can be moved
    selection, store = open_selection(tmp_path / "run" / "select", unlabeled)
    probs = LabelStore(tmp_path / "run" / "label", unlabeled).probabilities(selection.rows)
    targets = Targets(store, "soft", temperature=0.5)
    np.testing.assert_array_equal(targets.of_rows(selection.rows), sharpen(probs, 0.5))
    assert (probs.max(1) >= 0.5).all()


def test_a_selection_refuses_other_shards_and_labels_made_anew(
    tmp_path: Path, data: Data, unlabeled: Dataset, write_stage: WriteStage, logits: F32Array
) -> None:
    labels = write_stage(logits)
    folder = select_stage(tmp_path, data, labels, Select())
    with pytest.raises(
        UserError, match=rf"selects from other unlabeled shards: expected \w+, found {unlabeled.fingerprint}"
    ):
        open_selection(folder, open_split(data, "labeled"))
    with pytest.raises(UserError, match="is a label stage, not a select stage"):
        open_selection(labels, unlabeled)
    write_json(labels / "stage.json", {**read_json(labels / "stage.json"), "fingerprint": "new"})
    with pytest.raises(UserError, match=r"was made from other labels than .*label holds: expected \w+, found new"):
        open_selection(folder, unlabeled)
