"""Laws of the filters that differ between classes: adaptive thresholds, and the surest share of each class."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selected_rows import Rows, order_of, some_rows

from pipeline.config import Select
from pipeline.selection import rules as select_module


@st.composite
def filters_per_class(draw: st.DrawFn) -> Select:
    filters = st.sampled_from(
        [{"threshold": "adaptive"}, {"share": 0.07}, {"share": 0.5}, {"share": 0.8, "threshold": 0.9}]
    )
    balance = draw(st.sampled_from(["off", "uniform", "prior"]))
    return Select.model_validate({**draw(filters), "balance": balance, "per_class": draw(st.integers(0, 25))})


@given(some_rows(), filters_per_class(), st.sampled_from([1, 3, 7, 64]), st.randoms(use_true_random=False))
def test_filters_per_class_depend_on_neither_order_nor_chunks(
    rows: Rows, config: Select, chunk: int, random: object
) -> None:
    order = np.arange(len(rows.ids))
    random.shuffle(order)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select_module, "_CHUNK", chunk)
        permuted = rows.take(order).select(config)
    selection = rows.select(config)
    assert permuted.summary["classes"] == [
        {**line, "mean_confidence": pytest.approx(line["mean_confidence"])} for line in selection.summary["classes"]
    ]
    assert rows.take(order).chosen(config) == rows.chosen(config)


@given(some_rows())
def test_an_adaptive_threshold_is_the_mean_confidence_of_its_class(rows: Rows) -> None:
    selection = rows.select(Select(threshold="adaptive", balance="off"))
    for c, line in enumerate(selection.summary["classes"]):
        members = np.flatnonzero(rows.label == c)
        mean = rows.confidence[members].mean(dtype=np.float64) if len(members) else 0.0
        assert line["cut"] == pytest.approx(mean, abs=1e-7)
        kept = selection.rows[rows.label[selection.rows] == c]
        np.testing.assert_array_equal(kept, members[rows.confidence[members] >= np.float32(line["cut"])])
        assert len(kept) > 0 or not len(members), "the surest is never below the mean"


@given(some_rows(), st.sampled_from([0.07, 0.3, 0.5, 0.8, 1.0]), st.sampled_from([0.0, 0.9]))
def test_a_share_keeps_the_surest_of_each_class(rows: Rows, share: float, threshold: float) -> None:
    selection = rows.select(Select(share=share, threshold=threshold, balance="off"))
    for c in range(rows.num_classes):
        expected = order_of(rows, c, threshold)
        expected = expected[: math.ceil(Fraction(str(share)) * len(expected))]
        kept = selection.rows[rows.label[selection.rows] == c]
        np.testing.assert_array_equal(kept, np.sort(expected))


def test_the_mean_of_equal_small_confidences_keeps_them_all() -> None:
    """A mean that was rounded up would keep none."""
    tiny = np.full(1000, np.float32(1 / 3000))
    rows = Rows(np.zeros(1000, np.int32), tiny, tiny, np.arange(1000, dtype=np.uint64), 1)
    assert len(rows.select(Select(threshold="adaptive", balance="off")).rows) == 1000
