from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.labeled_digits import WriteStage, provenance_of, rows_of

from pipeline.errors import UserError
from pipeline.labels.store import LabelRows, LabelStore, label_path, read_labels, summarize, write_labels
from pipeline.shards.dataset import Dataset
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import finish_folder, open_folder

F32Array = npt.NDArray[np.float32]


def some_logits(seed: int, num_rows: int, num_classes: int, scale: float) -> F32Array:
    return np.random.default_rng(seed).uniform(-scale, scale, (num_rows, num_classes)).astype(np.float32)


def softmax(logits: F32Array) -> npt.NDArray[np.float64]:
    return torch.from_numpy(logits).double().softmax(1).numpy()


# ------------------------------------------------------------------------------------------------------------ summarize


def shapes(law: Callable[[int, int, float], None]) -> Callable[[], None]:
    """Holds for any seed, number of classes and scale of the logits."""
    return given(st.integers(0, 2**32), st.integers(2, 30), st.sampled_from([0.1, 5.0, 80.0]))(law)


@shapes
def test_log_odds_equal_those_of_float64(seed: int, num_classes: int, scale: float) -> None:
    logits = some_logits(seed, 50, num_classes, scale)
    found = summarize(torch.from_numpy(logits), 3)["log_odds"].numpy()
    ordered = np.sort(logits.astype(np.float64), axis=1)
    expected = ordered[:, -1] - np.logaddexp.reduce(ordered[:, :-1], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * max(scale, 1))
    apart = np.abs(np.subtract.outer(expected, expected)) > 1e-4
    assert (np.less.outer(found, found) == np.less.outer(expected, expected))[apart].all(), "another ranking"


def test_log_odds_rank_where_confidence_is_saturated() -> None:
    logits = torch.full((100, 10), -80.0)
    logits[:, 3] = torch.linspace(-50, 80, 100)
    fields = summarize(logits, 10)
    assert (fields["confidence"] == 1).all()
    assert (fields["log_odds"].diff() > 1).all()
    assert fields["log_odds"].isfinite().all()


def test_of_equal_logits_the_lower_class_comes_first() -> None:
    fields = summarize(torch.tensor([[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]]), 3)
    assert fields["label"].tolist() == [1, 0]
    assert fields["topk_ids"].tolist() == [[1, 2, 0], [0, 1, 2]]


@shapes
def test_logits_are_known_up_to_one_constant_per_row(seed: int, num_classes: int, scale: float) -> None:
    logits = torch.from_numpy(some_logits(seed, 20, num_classes, scale)).double()
    plain, shifted = summarize(logits, 5), summarize(logits.log_softmax(1), 5)
    for name in plain:
        torch.testing.assert_close(plain[name], shifted[name], rtol=1e-5, atol=2e-4, msg=name)


@shapes
def test_stored_probabilities_sum_to_one(seed: int, num_classes: int, scale: float) -> None:
    fields = summarize(torch.from_numpy(some_logits(seed, 50, num_classes, scale)), 4)
    total = fields["topk_log_probs"].exp().sum(1) + fields["residual"]
    torch.testing.assert_close(total, torch.ones(50), rtol=0, atol=2e-5)


# ------------------------------------------------------------------------------------------------------------ one file


@pytest.fixture
def labels(tmp_path: Path) -> tuple[Path, LabelRows]:
    rows = rows_of(some_logits(0, 200, 10, 5.0), np.arange(200, dtype=np.uint64) << np.uint64(50), top_k=4)
    write_labels(tmp_path / "a.arrow", rows, provenance_of(top_k=4))
    return tmp_path / "a.arrow", rows


def test_labels_read_as_they_were_written(labels: tuple[Path, LabelRows]) -> None:
    path, written = labels
    read = read_labels(path, provenance_of(top_k=4))
    assert list(read.keys) == list(written.keys)
    assert (read.keys[3], list(read.keys[3:5])) == ("key 3", ["key 3", "key 4"])
    for name in ("ids", "label", "confidence", "log_odds", "topk_ids", "topk_log_probs", "residual"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name), err_msg=name)
    assert read.topk_ids.dtype == np.int16
    assert read.log_odds.dtype == np.float32


def test_labels_are_read_without_a_copy(labels: tuple[Path, LabelRows]) -> None:
    before = pa.total_allocated_bytes()
    read = read_labels(labels[0])
    assert pa.total_allocated_bytes() - before < 8192, "less than any column of a large file"
    for name in ("ids", "label", "confidence", "log_odds", "topk_ids", "topk_log_probs", "residual"):
        array = getattr(read, name)
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_labels_of_more_than_32768_classes_keep_their_ids(tmp_path: Path) -> None:
    rows = rows_of(some_logits(0, 3, 40_000, 5.0), np.arange(3, dtype=np.uint64), top_k=4)
    write_labels(tmp_path / "a.arrow", rows, provenance_of(top_k=4, num_classes=40_000))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.arrow").topk_ids, rows.topk_ids)


def test_an_empty_shard_and_keys_that_are_no_unicode_are_stored(tmp_path: Path) -> None:
    rows = rows_of(some_logits(0, 1, 10, 5.0), np.zeros(1, np.uint64))
    odd = LabelRows(**{**vars(rows), "keys": ["a\udcff"]})
    write_labels(tmp_path / "odd.arrow", odd, provenance_of())
    assert list(read_labels(tmp_path / "odd.arrow").keys) == ["a\\udcff"]
    none = rows_of(np.zeros((0, 10), np.float32), np.zeros(0, np.uint64))
    write_labels(tmp_path / "none.arrow", none, provenance_of())
    assert len(read_labels(tmp_path / "none.arrow")) == 0


@pytest.mark.parametrize(("key", "value"), [("teachers", "t1"), ("precision", "bf16"), ("shard", "abc")])
def test_foreign_labels_are_refused_by_name(labels: tuple[Path, LabelRows], key: str, value: str) -> None:
    expected = {**provenance_of(top_k=4), key: value}
    found = provenance_of(top_k=4).get(key, "none")
    with pytest.raises(UserError, match=rf"a\.arrow holds labels of another {key}: expected {value}, found {found}; "):
        read_labels(labels[0], expected)


def test_any_other_arrow_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), pa.schema({"x": pa.int8()})) as out:
        out.write_batch(pa.record_batch({"x": pa.array([1], pa.int8())}))
    with pytest.raises(UserError, match=r"a\.arrow holds labels of another format"):
        read_labels(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(labels: tuple[Path, LabelRows], share: float) -> None:
    path, data = labels[0], labels[0].read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"a\.arrow \(\d+ bytes\) is truncated or damaged .*delete this file and run"):
        read_labels(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.arrow does not exist; .* run `selftrain label` again"):
        read_labels(tmp_path / "gone.arrow")


def test_damaged_bytes_give_an_error_or_rows_of_known_classes(labels: tuple[Path, LabelRows], tmp_path: Path) -> None:
    """Never a crash, and never another error than ours. A flipped bit of a number is not noticed: no checksum."""
    content, rng = labels[0].read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(500):
        damaged = tmp_path / f"damaged-{number}.arrow"
        where = int(rng.integers(len(content) - 2500, len(content)) if number % 2 else rng.integers(0, len(content)))
        damaged.write_bytes(content[:where] + rng.bytes(4) + content[where + 4 :])
        try:
            rows = read_labels(damaged)
        except UserError as error:
            refused += damaged.name in str(error)
        else:
            assert 0 <= rows.topk_ids.min() <= rows.topk_ids.max() < 10
            assert len(rows) == len(rows.log_odds) == 200
    assert refused > 100


def test_a_teacher_that_predicts_nan_is_refused(tmp_path: Path) -> None:
    logits = some_logits(0, 5, 10, 5.0)
    logits[3, 2] = np.nan
    with pytest.raises(UserError, match=r"predicts NaN for 1 of 5 images \(first `key 3`\)"):
        write_labels(tmp_path / "a.arrow", rows_of(logits, np.arange(5, dtype=np.uint64)), provenance_of())
    assert not (tmp_path / "a.arrow").exists()


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    rows = rows_of(some_logits(0, 5000, 10, 5.0), np.arange(5000, dtype=np.uint64))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.arrow.*free space"):
            write_labels(tmp_path / "a.arrow", rows, provenance_of())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ the store


def test_a_store_joins_shards_in_the_order_of_the_dataset(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array
) -> None:
    store = LabelStore(write_stage(logits), unlabeled)
    assert len(store) == len(unlabeled)
    np.testing.assert_array_equal(store.label, logits.argmax(1))
    np.testing.assert_allclose(store.confidence, softmax(logits).max(1), rtol=1e-6)


def test_probabilities_equal_softmax_when_all_classes_are_stored(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array
) -> None:
    store = LabelStore(write_stage(logits), unlabeled)
    rows = np.random.default_rng(0).integers(0, len(unlabeled), 500)
    np.testing.assert_allclose(store.probabilities(rows), softmax(logits)[rows], rtol=1e-5, atol=1e-9)


def test_the_residual_is_spread_over_the_classes_that_are_not_stored(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array
) -> None:
    store = LabelStore(write_stage(logits, top_k=3), unlabeled)
    probs, exact = store.probabilities(np.arange(len(unlabeled))), softmax(logits)
    order = np.argsort(-exact, axis=1)
    found, expected = np.take_along_axis(probs, order, 1), np.take_along_axis(exact, order, 1)
    np.testing.assert_allclose(found[:, :3], expected[:, :3], rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:], np.repeat(expected[:, 3:].mean(1, keepdims=True), 7, 1), rtol=1e-4)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)


def test_a_store_refuses_a_missing_shard(write_stage: WriteStage, unlabeled: Dataset, logits: F32Array) -> None:
    folder = write_stage(logits)
    label_path(folder, unlabeled.shards[1].name).unlink()
    with pytest.raises(UserError, match=rf"{unlabeled.shards[1].name}\.arrow does not exist"):
        LabelStore(folder, unlabeled)


def test_a_store_refuses_another_teachers_file(write_stage: WriteStage, unlabeled: Dataset, logits: F32Array) -> None:
    folder, other = write_stage(logits), write_stage(logits, "other", teacher="t1")
    name = unlabeled.shards[1].name
    shutil.copy(label_path(other, name), label_path(folder, name))
    with pytest.raises(UserError, match=rf"{name}\.arrow holds labels of another teachers: expected t0, found t1"):
        LabelStore(folder, unlabeled)


def test_a_store_refuses_the_file_of_another_shard(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array
) -> None:
    folder = write_stage(logits)
    first, second = (label_path(folder, shard.name) for shard in unlabeled.shards[:2])
    shutil.copy(first, second)
    with pytest.raises(UserError, match=rf"{second.name} holds labels of another shard: expected "):
        LabelStore(folder, unlabeled)


@pytest.mark.parametrize("change", ["ids", "length"])
def test_a_store_refuses_labels_of_other_images(
    write_stage: WriteStage, unlabeled: Dataset, logits: F32Array, change: str
) -> None:
    folder, shard = write_stage(logits), unlabeled.shards[0]
    ids = unlabeled.ids[: shard.num_rows].copy()
    ids[7] += np.uint64(1)
    rows = rows_of(logits[: shard.num_rows], ids) if change == "ids" else rows_of(logits[:5], ids[:5])
    write_labels(label_path(folder, shard.name), rows, {**provenance_of(), "shard": shard.sha256})
    expected = r"in row 7 expected id [0-9a-f]{16}, found" if change == "ids" else "holds 5 images, its shard"
    with pytest.raises(UserError, match=expected):
        LabelStore(folder, unlabeled)


def test_a_store_needs_a_finished_label_stage(tmp_path: Path, unlabeled: Dataset) -> None:
    open_folder(tmp_path / "unfinished", "label", 1, StageInputs({}, {}), {})
    with pytest.raises(UserError, match="unfinished is an unfinished stage"):
        LabelStore(tmp_path / "unfinished", unlabeled)
    open_folder(tmp_path / "train", "train", 1, StageInputs({}, {}), {})
    finish_folder(tmp_path / "train", [])
    with pytest.raises(UserError, match="is a train stage, not a label stage"):
        LabelStore(tmp_path / "train", unlabeled)
