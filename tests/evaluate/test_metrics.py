from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pipeline.models  # noqa: F401  (lets torchvision, which torchmetrics imports, be imported beside a CPU torch)
from pipeline.errors import UserError
from pipeline.evaluate.metrics import (
    NUM_BINS,
    Metrics,
    compute_metrics,
    paired_difference,
    reliability,
    top_k_accuracy,
    wilson_interval,
)


def random_predictions(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs.astype(np.float32), rng.integers(0, classes, n).astype(np.int32)


def test_figures_of_a_hand_made_case() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])
    metrics = compute_metrics(np.log(probs).astype(np.float32), np.array([0, 1, 2, 0], np.int32))
    assert metrics.top1 == 0.5
    assert metrics.top5 == 1.0
    assert metrics.nll == pytest.approx(-np.log([0.7, 0.6, 0.4, 0.2]).mean(), rel=1e-6)
    # bins of 1/15: 0.7 right; 0.6 twice, half right; 0.5 wrong
    assert metrics.ece == pytest.approx((0.3 + 2 * 0.1 + 0.5) / 4, rel=1e-6)
    assert metrics.num_samples == 4
    assert metrics.interval == wilson_interval(2, 4)


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe 1998, table I: 81/263 and 15/148, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("share", [0, 1])
def test_the_wilson_interval_of_none_or_all_holds_the_share_for_any_number(share: int) -> None:
    for n in range(1, 3000):
        low, high = wilson_interval(share * n, n)
        assert 0 <= low <= share <= high <= 1, n


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_holds_the_share_and_stays_in_range(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1
    assert low < high


@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 2**31))
def test_metrics_do_not_depend_on_the_order_of_samples(n: int, classes: int, seed: int) -> None:
    log_probs, labels = random_predictions(n, classes, seed)
    shuffled = np.random.default_rng(seed).permutation(n)
    one, other = compute_metrics(log_probs, labels), compute_metrics(log_probs[shuffled], labels[shuffled])
    assert (one.top1, one.top5, one.interval) == (other.top1, other.top5, other.interval)
    assert one.nll == pytest.approx(other.nll, rel=1e-12)
    assert one.ece == pytest.approx(other.ece, rel=1e-9, abs=1e-12)


@given(st.integers(1, 100), st.integers(1, 12), st.integers(0, 2**31))
def test_accuracy_grows_with_k_up_to_one(n: int, classes: int, seed: int) -> None:
    log_probs, labels = random_predictions(n, classes, seed)
    shares = [top_k_accuracy(log_probs, labels, k) for k in range(classes + 1)]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_top1_is_argmax_on_ties() -> None:
    log_probs = np.log(np.full((4, 4), 0.25, np.float32))
    labels = np.arange(4, dtype=np.int32)
    assert top_k_accuracy(log_probs, labels, 1) == (log_probs.argmax(axis=1) == labels).mean() == 0.25


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(0, 2**31))
def test_reliability_bins_count_every_sample_once(confidence: list[float], seed: int) -> None:
    values = np.array(confidence)
    right = np.random.default_rng(seed).random(len(values)) < values
    bins = reliability(values, right)
    assert bins.counts.sum() == len(values)
    full = bins.counts > 0
    assert (bins.confidence[full] >= bins.edges[:-1][full] - 1e-9).all()
    assert (bins.confidence[full] <= bins.edges[1:][full] + 1e-9).all()
    assert np.isnan(bins.accuracy[~full]).all()
    assert 0 <= bins.ece <= 1


def test_a_perfectly_calibrated_model_has_no_error() -> None:
    confidence = np.repeat([0.25, 0.75], 1000)
    right = np.concatenate([np.arange(1000) < 250, np.arange(1000) < 750])
    assert reliability(confidence, right).ece == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_bins", [10, 15, 20])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_calibration_error_is_that_of_torchmetrics(num_bins: int, classes: int) -> None:
    """An implementation of others, on predictions that are too sure and too unsure. Its sums are in float32."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    for seed, temperature in enumerate((0.3, 1.0, 4.0)):
        log_probs, labels = random_predictions(2000, classes, seed)
        cooled = torch.log_softmax(torch.from_numpy(log_probs).double() / temperature, dim=1)
        confidence, predicted = cooled.exp().max(dim=1)
        theirs = multiclass_calibration_error(
            cooled.exp(), torch.from_numpy(labels).long(), num_classes=classes, n_bins=num_bins, norm="l1"
        )
        ours = reliability(confidence.numpy(), predicted.numpy() == labels, num_bins)
        assert ours.ece == pytest.approx(float(theirs), abs=1e-5)
        if num_bins == NUM_BINS:
            assert compute_metrics(cooled.numpy(), labels).ece == pytest.approx(float(theirs), abs=1e-5)


def test_metrics_survive_json() -> None:
    metrics = compute_metrics(*random_predictions(50, 10))
    assert Metrics.from_json(json.loads(json.dumps(metrics.to_json()))) == metrics


def test_an_impossible_class_gives_infinite_nll() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[1.0, 0.0]], np.float32))
    assert compute_metrics(log_probs, np.array([1], np.int32)).nll == math.inf


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int32), "no samples"),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int32), "do not fit"),
        (np.zeros((2, 3), np.float32), np.array([0, 3], np.int32), "label 3 is out of range"),
        (np.zeros((2, 3), np.float32), np.array([-1, 0], np.int32), "label -1 is out of range"),
        (np.full((2, 3), np.nan, np.float32), np.array([0, 0], np.int32), "2 predictions are nan"),
    ],
)
def test_bad_input_is_a_clear_error(log_probs: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compute_metrics(log_probs, labels)


def test_paired_difference_is_antisymmetric_and_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(2000)
    one, other = hard < 0.8, hard < 0.77  # the same images are hard for both
    difference, low, high = paired_difference(one, other)
    assert difference == pytest.approx(one.mean() - other.mean())
    assert 0 < low < difference < high
    assert paired_difference(other, one) == pytest.approx((-difference, -high, -low))
    assert wilson_interval(int(one.sum()), 2000)[0] < wilson_interval(int(other.sum()), 2000)[1]


def test_paired_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        draw = rng.random(300)  # one right alone 10%, other right alone 6%: the difference is 4 points
        one, other = draw < 0.7, (draw < 0.6) | ((draw > 0.7) & (draw < 0.76))
        _, low, high = paired_difference(one, other)
        covered += low <= 0.04 <= high
    assert 0.92 <= covered / 400 <= 0.98
