"""Random numbers are functions of their position, and are those of Philox."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import randomness
from pipeline.randomness import key_of, permutation, philox_u32, reseed_torch, uniforms

KEYS = st.integers(0, 2**64 - 1)
POSITIONS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)


def words(values: np.ndarray) -> list[str]:
    return [f"{int(v):08x}" for v in values]


def test_words_are_those_of_random123_at_zero() -> None:
    """kat_vectors of Random123 1.14: philox4x32-10, counter 0, key 0."""
    assert words(philox_u32(0, [0], 4)[0]) == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_words_are_those_of_random123_at_all_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counter and key all ones. The upper half of our counter is the block number, so it is put in by hand."""
    ones = np.uint64(0xFFFFFFFF)
    monkeypatch.setattr(randomness.np, "arange", lambda *args, **kwargs: np.array([ones]))
    monkeypatch.setattr(randomness.np, "zeros", lambda shape, dtype: np.full(shape, ones, dtype))
    found = philox_u32(2**64 - 1, np.array([2**64 - 1], np.uint64), 4)[0]
    assert words(found) == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@given(KEYS, POSITIONS, st.integers(1, 11))
def test_a_word_depends_on_key_position_and_draw_alone(key: int, positions: list[int], num_draws: int) -> None:
    where = np.array(positions, np.uint64)
    together = philox_u32(key, where, num_draws)
    assert together.shape == (len(positions), num_draws)
    assert np.array_equal(together[::-1], philox_u32(key, where[::-1], num_draws))
    assert np.array_equal(together[:1], philox_u32(key, where[:1], num_draws))
    assert np.array_equal(together[:, :1], philox_u32(key, where, 1))


@given(KEYS, st.integers(0, 300))
def test_a_permutation_holds_every_index_once(key: int, length: int) -> None:
    order = permutation(key, length)
    assert sorted(order) == list(range(length))
    assert np.array_equal(order, permutation(key, length))


def test_permutations_of_different_keys_differ_and_are_uniform() -> None:
    firsts = np.array([permutation(key_of(0, "order", epoch), 8)[0] for epoch in range(4000)])
    counts = np.bincount(firsts, minlength=8)
    assert abs(counts - 500).max() < 100  # 4.8 standard deviations


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    values = uniforms(key_of(3, "weak"), np.arange(20_000), 4)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean(axis=0) - 0.5).max() < 0.01
    assert abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.03


def test_keys_differ_by_seed_purpose_and_coordinates() -> None:
    keys = {
        key_of(0, "weak"),
        key_of(1, "weak"),
        key_of(0, "strong"),
        key_of(0, "weak", 1),
        key_of(0, "weak", 1, 1),
        key_of(0, "weak", 11),
        key_of(0, "weak", "1", "x"),
    }
    assert len(keys) == 7
    assert all(0 <= key < 2**64 for key in keys)


def test_keys_are_the_same_in_every_version() -> None:
    """Changing these breaks the resume of every run and the reuse of every stage."""
    assert key_of(0, "order", "labeled", 0, 0) == 0x274038D01AB8E17F
    assert list(permutation(0, 6)) == [2, 0, 5, 3, 4, 1]


def test_torch_draws_are_a_function_of_the_key() -> None:
    def draw(key: int) -> torch.Tensor:
        reseed_torch(key)
        return torch.rand(4)

    first = draw(2**64 - 1)
    assert not torch.equal(draw(1), first)
    assert torch.equal(draw(2**64 - 1), first)
