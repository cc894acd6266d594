"""Carved splits are balanced, disjoint by content, and a function of contents and seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SPLITS
from pipeline.errors import UserError
from pipeline.packing.carve import Carve, carve_splits, fewer_labels

CLASSES = ("cat", "dog", "emu")


def images(labels: np.ndarray) -> np.ndarray:
    """Distinct content hashes."""
    return np.array([np.random.default_rng(n).bytes(15) + b"x" for n in range(len(labels))], "S16")


def counts(splits: np.ndarray, labels: np.ndarray, split: str) -> list[int]:
    return np.bincount(labels[splits == SPLITS.index(split)], minlength=len(CLASSES)).tolist()


LABELS = np.repeat(np.arange(3, dtype=np.int32), [100, 50, 30])
CONTENTS = images(LABELS)


def test_labeled_is_balanced_and_val_and_test_follow_the_source() -> None:
    splits = carve_splits(Carve(num_labeled=30, val_fraction=0.1, test_fraction=0.2), LABELS, CONTENTS, CLASSES)
    assert counts(splits, LABELS, "labeled") == [10, 10, 10]
    assert counts(splits, LABELS, "val") == [10, 5, 3]
    assert counts(splits, LABELS, "test") == [20, 10, 6]
    assert counts(splits, LABELS, "unlabeled") == [60, 25, 11]


def test_labels_that_do_not_divide_evenly_still_add_up() -> None:
    splits = carve_splits(Carve(num_labeled=31), LABELS, CONTENTS, CLASSES)
    assert sorted(counts(splits, LABELS, "labeled")) == [10, 10, 11]


@given(st.permutations(range(len(LABELS))), st.integers(0, 5))
def test_the_order_of_files_does_not_matter(order: list[int], seed: int) -> None:
    carve = Carve(num_labeled=30, val_fraction=0.1, seed=seed)
    splits = carve_splits(carve, LABELS, CONTENTS, CLASSES)
    assert np.array_equal(carve_splits(carve, LABELS[order], CONTENTS[order], CLASSES), splits[order])


def test_seeds_differ_and_labeled_sets_of_one_seed_are_nested() -> None:
    few, many = (carve_splits(Carve(num_labeled=n, val_fraction=0.1), LABELS, CONTENTS, CLASSES) for n in (9, 30))
    other = carve_splits(Carve(num_labeled=9, val_fraction=0.1, seed=1), LABELS, CONTENTS, CLASSES)
    labeled, val = SPLITS.index("labeled"), SPLITS.index("val")
    assert set(np.flatnonzero(few == labeled)) < set(np.flatnonzero(many == labeled))
    assert np.array_equal(few == val, many == val)
    assert not np.array_equal(few, other)


@given(st.lists(st.integers(0, 99), min_size=180, max_size=180), st.integers(0, 3))
def test_equal_images_share_a_split_and_ambiguous_ones_are_unlabeled(picks: list[int], seed: int) -> None:
    contents = CONTENTS[picks]
    labels = np.array([pick % 3 for pick in picks], np.int32)
    labels[:5] = 0  # some images are under two classes now
    try:
        splits = carve_splits(Carve(num_labeled=9, val_fraction=0.1, seed=seed), labels, contents, CLASSES)
    except UserError:
        return  # so many duplicates that a class lacks images
    for content in np.unique(contents):
        group = contents == content
        assert len(np.unique(splits[group])) == 1
        if len(np.unique(labels[group])) > 1:
            assert splits[group][0] == SPLITS.index("unlabeled")


@pytest.mark.parametrize(
    ("carve", "labeled"),
    [
        (Carve(num_labeled=93), [31, 31, 30]),
        (Carve(num_labeled=30, val_fraction=0.5, test_fraction=0.4), [10, 5, 3]),
        (Carve(num_labeled=120, val_fraction=0.1, test_fraction=0.1), [40, 40, 24]),
    ],
)
def test_a_rare_class_has_fewer_labels_and_val_and_test_stay_unbiased(carve: Carve, labeled: list[int]) -> None:
    splits = carve_splits(carve, LABELS, CONTENTS, CLASSES)
    assert counts(splits, LABELS, "labeled") == labeled
    for split, fraction in (("val", carve.val_fraction), ("test", carve.test_fraction)):
        assert counts(splits, LABELS, split) == [round(fraction * size) for size in (100, 50, 30)]  # type: ignore[operator]
    rare = fewer_labels(carve, LABELS[splits == SPLITS.index("labeled")], CLASSES)
    wanted = carve.num_labeled // 3  # type: ignore[operator]
    assert rare == {name: n for name, n in zip(CLASSES, labeled, strict=True) if n < wanted}


def test_all_labels_stay_beside_val_and_test() -> None:
    carve = Carve(num_labeled="all", val_fraction=0.1, test_fraction=0.2)
    splits = carve_splits(carve, LABELS, CONTENTS, CLASSES)
    assert [counts(splits, LABELS, split) for split in ("labeled", "val", "test", "unlabeled")] == [
        [70, 35, 21],
        [10, 5, 3],
        [20, 10, 6],
        [0, 0, 0],
    ]
    few = carve_splits(Carve(num_labeled=9, val_fraction=0.1, test_fraction=0.2), LABELS, CONTENTS, CLASSES)
    for split in ("val", "test"):
        assert np.array_equal(splits == SPLITS.index(split), few == SPLITS.index(split))


def test_proportional_labels_follow_the_source_and_every_class_has_one() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), [120, 55, 5])
    carve = Carve(num_labeled=36, proportional=True, val_fraction=0.2)
    assert counts(carve_splits(carve, labels, CONTENTS, CLASSES), labels, "labeled") == [24, 11, 1]
    with pytest.raises(UserError, match="--proportional"):
        Carve(num_labeled="all", proportional=True)


def test_a_class_of_which_val_and_test_take_all_is_refused() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), [100, 78, 2])
    with pytest.raises(UserError, match=r"class `emu` has 2 images: no labeled one .* or --drop the class"):
        carve_splits(Carve(num_labeled=9, val_fraction=0.5, test_fraction=0.4), labels, CONTENTS, CLASSES)


def test_fewer_labels_than_classes_and_odd_fractions_are_refused() -> None:
    with pytest.raises(UserError, match="less than one image for each of 3 classes"):
        carve_splits(Carve(num_labeled=2), LABELS, CONTENTS, CLASSES)
    with pytest.raises(UserError, match="--val-fraction"):
        Carve(num_labeled=2, val_fraction=1.0)
    with pytest.raises(UserError, match="--labels"):
        Carve(num_labeled=0)


def test_a_class_whose_images_are_equal_says_so() -> None:
    labels = np.repeat(np.arange(3, dtype=np.int32), 8)
    contents = images(labels)
    contents[8:16] = contents[8]
    with pytest.raises(UserError, match=r"class `dog` has 8 images, of which 1 differ.*or --drop the class"):
        carve_splits(Carve(num_labeled=9), labels, contents, CLASSES)


NAMES = [f"class{number:03d}" for number in range(100)]


def test_ties_between_classes_are_broken_by_chance_and_otherwise_for_val_than_for_test() -> None:
    """Else val and test hold the first classes of the alphabet, for any seed."""
    labels = np.repeat(np.arange(100, dtype=np.int32), 8)
    contents, held = images(labels), {}
    for seed in range(3):
        carve = Carve(num_labeled=250, val_fraction=0.06, test_fraction=0.06, seed=seed)
        splits = carve_splits(carve, labels, contents, NAMES)
        for split in ("val", "test"):
            held[seed, split] = frozenset(labels[splits == SPLITS.index(split)].tolist())
            assert len(held[seed, split]) == 48
            assert 10 < np.median(list(held[seed, split])) < 90
            assert max(held[seed, split]) > 80
    assert len(set(held.values())) == 6


@given(st.lists(st.integers(3, 60), min_size=2, max_size=12), st.integers(5, 40), st.integers(0, 3))
def test_val_and_test_have_every_class_where_they_have_as_many_images(
    sizes: list[int], percent: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    carve = Carve(num_labeled=len(sizes), val_fraction=percent / 100, test_fraction=percent / 100, seed=seed)
    splits = carve_splits(carve, labels, images(labels), NAMES[: len(sizes)])
    exact = np.round(percent / 100 * np.array(sizes), 6)
    for split in ("val", "test"):
        found = np.bincount(labels[splits == SPLITS.index(split)], minlength=len(sizes))
        assert found.sum() == round(float(exact.sum()))
        if found.sum() >= len(sizes):
            assert (found >= 1).all()
        assert (found <= np.maximum(np.ceil(exact), 1)).all()


def test_a_thousand_classes_of_two_images_have_one_labeled_each_and_share_the_rest() -> None:
    labels = np.repeat(np.arange(1000, dtype=np.int32), 2)
    carve = Carve(num_labeled=1000, val_fraction=0.2, test_fraction=0.2)
    splits = carve_splits(carve, labels, images(labels), [str(number) for number in range(1000)])
    sizes = {split: int((splits == number).sum()) for number, split in enumerate(SPLITS)}
    assert sizes == {"labeled": 1000, "val": 400, "test": 400, "unlabeled": 200}
