"""Laws of the selection, on arbitrary labels, confidences and log-odds, ties included."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selected_rows import Rows, order_of, some_rows

from pipeline.config import Select
from pipeline.randomness import key_of, uniforms
from pipeline.selection import rules as select_module


@st.composite
def some_config(draw: st.DrawFn) -> Select:
    return Select(
        threshold=draw(st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0])),
        per_class=draw(st.integers(0, 25)),
        balance=draw(st.sampled_from(["off", "uniform", "prior"])),
        max_copies=draw(st.sampled_from([1, 2, 5, 300])),
    )


@given(some_rows(), some_config())
def test_the_top_n_of_each_class_is_exact(rows: Rows, config: Select) -> None:
    selection = rows.select(config)
    for c in range(rows.num_classes):
        expected = order_of(rows, c, config.threshold)
        if config.balance != "prior":
            expected = expected[: config.per_class or None]
        kept = selection.rows[rows.label[selection.rows] == c]
        if config.balance == "prior":
            expected = expected[: len(kept)]
        np.testing.assert_array_equal(kept, np.sort(expected))


@given(some_rows(), some_config(), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_the_selection(rows: Rows, config: Select, random: object) -> None:
    order = np.arange(len(rows.ids))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert rows.take(order).chosen(config) == rows.chosen(config)


@given(some_rows(), some_config(), st.lists(st.integers(0, 120), max_size=4), st.randoms(use_true_random=False))
def test_shards_in_any_order_give_the_same_selection(
    rows: Rows, config: Select, cuts: list[int], random: object
) -> None:
    shards = np.split(np.arange(len(rows.ids)), sorted(min(c, len(rows.ids)) for c in cuts))
    random.shuffle(shards)  # type: ignore[attr-defined]
    assert rows.take(np.concatenate(shards)).chosen(config) == rows.chosen(config)


@given(some_rows(), some_config(), st.sampled_from([1, 3, 7, 64]))
def test_rows_at_a_time_do_not_matter(rows: Rows, config: Select, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select_module, "_CHUNK", chunk)
        chunked = rows.chosen(config)
    assert chunked == rows.chosen(config)


@given(some_rows(), some_config(), st.sampled_from([0.0, 0.1, 0.3, 0.9, 0.99, 0.999, 1.0]))
def test_raising_the_threshold_never_adds_a_row(rows: Rows, config: Select, other: float) -> None:
    low, high = sorted([config.threshold, other])
    with_low = rows.chosen(config.model_copy(update={"threshold": low}))
    assert rows.chosen(config.model_copy(update={"threshold": high})).keys() <= with_low.keys()


@given(some_rows(), some_config(), st.integers(0, 2**31))
def test_copies_are_of_kept_rows_and_within_the_cap(rows: Rows, config: Select, seed: int) -> None:
    selection = rows.select(config, seed)
    assert (np.diff(selection.rows.astype(np.int64)) > 0).all()
    assert (rows.confidence[selection.rows] >= np.float32(config.threshold)).all()
    assert (selection.copies >= 1).all()
    assert (selection.copies <= config.max_copies).all()
    if config.balance == "off":
        assert (selection.copies == 1).all()
    assert rows.select(config, seed + 1).rows.tolist() == selection.rows.tolist(), "the seed chose rows"


@given(some_rows(), some_config())
def test_copies_follow_the_hash_of_the_id(rows: Rows, config: Select) -> None:
    """Each row's copies, from the definition: floor(r) + [uniform(seed, id) < r - floor(r)]."""
    config = config.model_copy(update={"balance": "uniform"})
    selection = rows.select(config, seed=3)
    kept_label = rows.label[selection.rows]
    kept = np.bincount(kept_label, minlength=rows.num_classes)
    target = config.per_class or max(kept.max(), 1)
    ratio = np.minimum(target / kept[kept_label], config.max_copies)
    draw = uniforms(key_of(3, "select"), rows.ids[selection.rows])[:, 0]
    np.testing.assert_array_equal(selection.copies, np.floor(ratio) + (draw < ratio % 1))


@given(some_rows(), some_config())
def test_the_summary_counts_what_was_selected(rows: Rows, config: Select) -> None:
    selection = rows.select(config)
    summary = selection.summary
    assert summary["num_rows"] == len(rows.ids)
    assert summary["num_selected"] == len(selection.rows) == sum(c["kept"] for c in summary["classes"])
    assert summary["num_copies"] == selection.copies.sum() == sum(c["copied"] for c in summary["classes"])
    assert sum(summary["histogram"]["all"]) == len(rows.ids)
    assert sum(summary["histogram"]["kept"]) == len(selection.rows)
    for c, line in enumerate(summary["classes"]):
        kept = rows.confidence[selection.rows[rows.label[selection.rows] == c]]
        assert line["predicted"] == (rows.label == c).sum()
        assert line["threshold"] == (kept.min() if len(kept) else None)
        assert line["mean_confidence"] == (pytest.approx(kept.mean(dtype=float)) if len(kept) else None)
    if len(selection.rows):
        copies = selection.copies.astype(float)
        assert summary["effective_size"] == pytest.approx(copies.sum() ** 2 / (copies**2).sum())


def many_rows(counts: list[int], seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    log_odds = rng.normal(3, 2, len(label)).astype(np.float32)
    confidence = (1 / (1 + np.exp(-log_odds))).astype(np.float32)
    return Rows(label, confidence, log_odds, rng.integers(0, 2**64, len(label), np.uint64), len(counts))


@pytest.mark.parametrize("per_class", [0, 3000])
def test_uniform_balance_meets_its_target_in_expectation(per_class: int) -> None:
    rows = many_rows([4000, 1700, 2300, 900])
    target = per_class or 4000
    copied = np.array(
        [[c["copied"] for c in rows.select(Select(per_class=per_class), seed).summary["classes"]] for seed in range(20)]
    )
    # A binomial count of at most 2300 rows has a deviation of at most 24, the mean of 20 one of 5.4.
    assert np.abs(copied.mean(axis=0) - target).max() < 5 * 5.4
    assert (copied[:, 0] == target).all()


def test_uniform_balance_stops_at_the_cap() -> None:
    copied = [c["copied"] for c in many_rows([4000, 100]).select(Select(max_copies=5)).summary["classes"]]
    assert copied == [4000, 500]


def test_prior_balance_keeps_the_most_overrepresented_class_whole() -> None:
    rows = many_rows([3000, 1000, 1000])
    config = Select(balance="prior", prior=(0.5, 0.1, 0.4), max_copies=10)
    classes = rows.select(config).summary["classes"]
    assert [c["kept"] for c in classes] == [3000, 1000, 1000]
    assert classes[1]["copied"] == 1000, "10,000 rows for a share of 1: the largest ratio"
    assert classes[0]["copied"] == pytest.approx(5000, abs=150)
    assert classes[2]["copied"] == 4000


def test_prior_balance_cuts_to_the_exact_target_when_per_class_is_given() -> None:
    rows = many_rows([3000, 1000, 1000])
    selection = rows.select(Select(balance="prior", prior=(0.5, 0.1, 0.4), per_class=500))
    assert [c["copied"] for c in selection.summary["classes"]] == [750, 150, 600]
    assert (selection.copies == 1).all()
    np.testing.assert_array_equal(
        selection.rows[rows.label[selection.rows] == 0], np.sort(order_of(rows, 0, 0.0)[:750])
    )


def test_prior_balance_follows_the_labeled_images_by_default() -> None:
    selection = many_rows([3000, 3000]).select(Select(balance="prior", per_class=1000), prior=np.array([0.25, 0.75]))
    assert [c["copied"] for c in selection.summary["classes"]] == [500, 1500]


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 60))
def test_all_rows_tied_keeps_the_smallest_ids(per_class: int, num_rows: int) -> None:
    ids = np.random.default_rng(num_rows).permutation(num_rows).astype(np.uint64)
    ones = np.ones(num_rows, np.float32)
    rows = Rows(np.zeros(num_rows, np.int32), ones, ones, ids, 1)
    kept = rows.chosen(Select(per_class=per_class, balance="off"))
    assert sorted(kept) == list(range(min(per_class, num_rows)))


def tied(rows: Rows) -> Rows:
    return Rows(rows.label, np.ones_like(rows.confidence), np.ones_like(rows.log_odds), rows.ids, rows.num_classes)


@pytest.mark.parametrize("change", [lambda rows: rows, tied], ids=["distinct", "all log-odds tied"])
@pytest.mark.parametrize(
    "config",
    [
        Select(per_class=70_000),
        Select(balance="off"),
        Select(per_class=5),
        Select(threshold="adaptive"),
        Select(share=0.5),
    ],
    ids=str,
)
def test_selecting_takes_at_most_8_bytes_a_row_beside_its_inputs(
    change: Callable[[Rows], Rows], config: Select
) -> None:
    """Counted: every allocation of `select`, its result included, at its peak; 1 MB does not depend on N.

    Not counted are its inputs: label, confidence and log-odds, 12 bytes per row where LabelStore joins several shards
    (of one shard they are a memory map), ids, 8 bytes per row, and the rest of the open data set.
    """
    rows = change(many_rows([910_000] + 9 * [10_000]))
    tracemalloc.start()
    try:
        rows.select(config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - 2**20 <= 8 * len(rows.ids)
