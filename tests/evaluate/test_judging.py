"""Two models on the same images: the differences are those of scikit-learn's figures, and their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from pipeline.config import JudgeBy
from pipeline.evaluate.judging import compare, figure_of
from pipeline.evaluate.metrics import paired_difference

PER_CLASS: tuple[JudgeBy, ...] = ("balanced_accuracy", "macro_f1")
every_figure = pytest.mark.parametrize("by", PER_CLASS)
SHARES = np.array([0.5, 0.25, 0.15, 0.07, 0.03])


def answers(label: np.ndarray, skill: list[float], rng: np.random.Generator, hard: np.ndarray) -> np.ndarray:
    """Answers that are right with a probability of the class; the same images are hard for all models."""
    right = 0.7 * hard + 0.3 * rng.random(len(label)) < np.array(skill)[label]
    return np.where(right, label, rng.integers(0, len(skill), len(label)))


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
@given(st.integers(1, 60), st.integers(0, 2**32))
def test_the_differences_are_those_of_scikit_learn(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, ours, theirs = (rng.integers(0, 4, n) for _ in range(3))
    balanced = oracle.balanced_accuracy_score(label, ours) - oracle.balanced_accuracy_score(label, theirs)
    assert compare(label, ours, theirs, "balanced_accuracy")[0] == pytest.approx(balanced)
    f1, other = (oracle.f1_score(label, p, labels=np.unique(label), average="macro") for p in (ours, theirs))
    assert compare(label, ours, theirs, "macro_f1")[0] == pytest.approx(f1 - other)
    assert compare(label, ours, theirs, "top1") == paired_difference(ours == label, theirs == label)


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_with_one_class_the_balanced_interval_is_that_of_accuracy(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, ours, theirs = np.zeros(n, np.int64), rng.integers(0, 2, n), rng.integers(0, 2, n)
    expected = paired_difference(ours == label, theirs == label)
    assert compare(label, ours, theirs, "balanced_accuracy") == pytest.approx(expected)


@every_figure
def test_a_comparison_is_antisymmetric_and_does_not_depend_on_the_order(by: JudgeBy) -> None:
    rng = np.random.default_rng(0)
    label, order = rng.choice(5, 300, p=SHARES), rng.permutation(300)
    hard = rng.random(300)
    ours, theirs = answers(label, [0.9] * 5, rng, hard), answers(label, [0.6] * 5, rng, hard)
    difference, low, high = compare(label, ours, theirs, by)
    assert 0 < low < difference < high
    assert compare(label, theirs, ours, by) == pytest.approx((-difference, -high, -low))
    assert compare(label[order], ours[order], theirs[order], by) == pytest.approx((difference, low, high))


@every_figure
@pytest.mark.parametrize("n", [40, 200])
def test_the_interval_covers_the_truth_about_19_times_in_20(by: JudgeBy, n: int) -> None:
    """At 40 images the smallest of 5 uneven classes has 1 or 2; the interval is then wider than it must be."""
    rng = np.random.default_rng(n)
    one, other = [0.9, 0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.8, 0.5, 0.3]

    def draw(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # As many images of each class in every draw: with a class that may be absent there is no one truth.
        label = np.repeat(np.arange(5), np.maximum(np.rint(SHARES * n), 1).astype(int))
        hard = rng.random(len(label))
        return label, answers(label, one, rng, hard), answers(label, other, rng, hard)

    many = draw(50_000)
    truth = figure_of(many[0], many[1], by) - figure_of(many[0], many[2], by)
    found = [compare(*draw(n), by) for _ in range(250)]
    covered = np.mean([low <= truth <= high for _, low, high in found])
    assert 0.91 <= covered <= 1
    assert n == 40 or covered < 0.99


@every_figure
def test_a_class_of_one_image_proves_nothing(by: JudgeBy) -> None:
    label = np.array([0] * 50 + [1])
    difference, _, high = compare(label, np.zeros(51, int), label, by)
    assert difference < -0.4
    assert high > 0, "one image more or less is chance"
