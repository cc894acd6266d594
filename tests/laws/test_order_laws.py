"""Laws of the order: exact epochs, position alone decides, and any seek is cheap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.randomness import permutation
from pipeline.shards import order as order_module
from pipeline.shards.order import Order


@st.composite
def orders(draw: st.DrawFn) -> tuple[Order, np.ndarray]:
    """An order over a few shards (some empty) and its copies of each row (some zero)."""
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(sum))
    starts = np.cumsum([0, *sizes])
    num_rows = sum(sizes)
    copies = None
    if draw(st.booleans()):
        copies = np.array(draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows).filter(sum)), np.uint8)
    order = Order(
        starts,
        copies,
        seed=draw(st.integers(0, 3)),
        stream=draw(st.sampled_from(["labeled", "unlabeled"])),
        round=draw(st.integers(0, 2)),
        window_shards=draw(st.integers(1, 7)),
    )
    return order, np.ones(num_rows, np.int64) if copies is None else copies


@given(orders(), st.integers(0, 5))
def test_every_row_and_copy_comes_exactly_once_an_epoch(case: tuple[Order, np.ndarray], epoch: int) -> None:
    order, copies = case
    rows = order.rows(epoch * order.epoch_size, (epoch + 1) * order.epoch_size)
    assert np.array_equal(np.bincount(rows, minlength=len(copies)), copies)


@given(orders(), st.tuples(*[st.integers(0, 60)] * 3).map(sorted))
def test_position_alone_decides(case: tuple[Order, np.ndarray], cuts: list[int]) -> None:
    order, _ = case
    a, b, c = cuts
    late = order.rows(b, c)  # before what comes earlier, on purpose
    assert np.array_equal(np.concatenate([order.rows(a, b), late]), order.rows(a, c))


@given(orders(), st.integers(1, 4), st.integers(0, 20))
def test_ranks_partition_every_step(case: tuple[Order, np.ndarray], num_ranks: int, step: int) -> None:
    order, _ = case
    per_rank = 3
    batch = num_ranks * per_rank
    begin = step * batch
    parts = [order.rows(begin + rank * per_rank, begin + (rank + 1) * per_rank) for rank in range(num_ranks)]
    assert np.array_equal(np.concatenate(parts), order.rows(begin, begin + batch))


def make(**changes: object) -> Order:
    arguments = {"seed": 0, "stream": "labeled", "round": 0, "window_shards": 4, **changes}
    return Order(np.arange(0, 1001, 50), None, **arguments)  # type: ignore[arg-type]


def test_epochs_seeds_streams_and_rounds_differ() -> None:
    first = make().rows(0, 1000)
    assert np.array_equal(first, make().rows(0, 1000))
    others = [make(seed=1), make(stream="unlabeled"), make(round=1), make(window_shards=5)]
    others_rows = [make().rows(1000, 2000), *(order.rows(0, 1000) for order in others)]
    for rows in others_rows:
        assert (rows == first).mean() < 0.05


def test_a_window_draws_from_its_shards_only_and_mixes_them() -> None:
    rows = make().rows(0, 1000) // 50
    for begin in range(0, 1000, 200):
        assert len(np.unique(rows[begin : begin + 200])) == 4
        assert len(np.unique(rows[begin : begin + 20])) > 1


def test_positions_are_uniform_over_rows() -> None:
    firsts = [int(make().rows(epoch * 1000, epoch * 1000 + 1)[0]) for epoch in range(2000)]
    counts = np.bincount(np.array(firsts) // 100, minlength=10)  # 10 cells, 200 each expected, sigma 13
    assert abs(counts - 200).max() < 5 * 13.5


def test_a_seek_far_ahead_costs_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(key: int, size: int) -> np.ndarray:
        sizes.append(size)
        return permutation(key, size)

    monkeypatch.setattr(order_module, "permutation", counted)
    order = Order(np.arange(0, 10_000_001, 1000), None, seed=0, stream="unlabeled", round=0, window_shards=8)
    order.rows(10**15, 10**15 + 512)
    assert sizes == [10_000, 8 * 1000]  # the shards of the epoch, the rows of the window


def test_an_empty_stream_is_an_error() -> None:
    with pytest.raises(UserError, match=r"stream `unlabeled` of round 2 has no samples"):
        Order(np.array([0, 3]), np.zeros(3, np.uint8), seed=0, stream="unlabeled", round=2)
