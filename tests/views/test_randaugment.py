"""The op table: what a magnitude means, and that each sample gets its own ops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.views import OPS, RandAugment, levels_at

Images = npt.NDArray[np.uint8]
WITHOUT_MAGNITUDE = {"autocontrast", "equalize", "invert"}


def run(randaugment: RandAugment, images: Images, ops: npt.ArrayLike, signs: npt.ArrayLike) -> Images:
    plan = randaugment.plan(np.asarray(ops), np.asarray(signs))
    arrays = torch.from_numpy(plan.order), torch.from_numpy(plan.parameters)
    return randaugment.apply(torch.from_numpy(images), *arrays, plan.counts).numpy()


def test_nominal_maximum_is_the_papers_range() -> None:
    small, large = levels_at(10, 32), levels_at(10, 224)
    for levels in (small, large):
        assert (levels.degrees, levels.shear, levels.bits, levels.threshold, levels.added) == (30, 0.3, 4, 0, 110)
        assert levels.factors == pytest.approx((0.1, 1.9))
    assert small.pixels == 4  # Noisy Student's SVHN recipe: 32 / 8
    assert large.pixels == 100  # and its ImageNet recipe


def test_the_reach_of_a_translation_grows_without_a_jump() -> None:
    """It once went from 12% to 45% of the side between 64 and 65 pixels."""
    shares = [levels_at(10, size).pixels / size for size in range(8, 400)]
    assert all(b - a > -1e-9 for a, b in pairwise(shares))
    assert max(b - a for a, b in pairwise(shares)) < 0.003
    assert (shares[0], shares[-1]) == pytest.approx((1 / 8, 100 / 224))


def test_levels_above_ten_stop_before_nothing_is_left() -> None:
    for size in (8, 32, 224):
        levels = levels_at(30, size)
        assert levels.degrees == 90
        assert levels.shear == pytest.approx(0.9)
        assert levels.pixels <= size / 2
        assert (levels.bits, levels.threshold, levels.added) == (2, 0, 128)
        assert levels.factors == pytest.approx((0.1, 3.7))


@given(st.floats(0, 30), st.floats(0, 30), st.sampled_from([8, 32, 64, 65, 224]))
def test_levels_grow_with_magnitude(first: float, second: float, size: int) -> None:
    low, high = (levels_at(magnitude, size) for magnitude in sorted((first, second)))
    assert low.degrees <= high.degrees
    assert low.shear <= high.shear
    assert low.pixels <= high.pixels
    assert low.bits >= high.bits >= 2
    assert low.threshold >= high.threshold >= 0
    assert low.added <= high.added <= 128
    assert high.factors[0] <= low.factors[0] <= 1 <= low.factors[1] <= high.factors[1]


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("name", sorted(set(OPS) - WITHOUT_MAGNITUDE))
def test_magnitude_zero_is_the_identity(
    name: str, sign: int, photos: Images, digits: Images, large_photos: Images
) -> None:
    for images in (photos, digits, large_photos):
        shape = (len(images), 1)
        result = run(RandAugment(1, 0, images.shape[1]), images, np.full(shape, OPS.index(name)), np.full(shape, sign))
        np.testing.assert_array_equal(result, images)


@pytest.mark.parametrize("magnitude", [5.0, 30.0])
def test_every_op_but_identity_changes_a_photo(magnitude: float, photos: Images) -> None:
    randaugment = RandAugment(1, magnitude, 32)
    for index, name in enumerate(OPS):
        shape = (len(photos), 1)
        result = run(randaugment, photos, np.full(shape, index), np.ones(shape, int))
        changed = (result != photos).any((1, 2, 3))
        assert changed[:18].mean() == 0 if name == "identity" else changed[:18].mean() > 0.9, name


@settings(max_examples=40)
@given(st.integers(1, 3), st.floats(0, 30), st.sampled_from([8, 32]), st.integers(0, 2**32 - 1))
def test_mixed_batch_equals_one_by_one(num_ops: int, magnitude: float, size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (33, size, size, 3), np.uint8)
    ops, signs = random.integers(0, len(OPS), (33, num_ops)), random.integers(0, 2, (33, num_ops))
    randaugment = RandAugment(num_ops, magnitude, size)
    together = run(randaugment, images, ops, signs)
    for row in range(33):
        alone = run(randaugment, images[row : row + 1], ops[row : row + 1], signs[row : row + 1])
        np.testing.assert_array_equal(together[row], alone[0])


@pytest.mark.parametrize("name", OPS)
def test_op_on_a_batch_equals_the_op_alone(name: str, photos: Images) -> None:
    """Vectorized loops and their tails must round alike: 1, 3, and all rows of one op."""
    index = OPS.index(name)
    randaugment = RandAugment(1, 9, 32)
    signs = np.arange(len(photos))[:, None] % 2
    whole = run(randaugment, photos, np.full((len(photos), 1), index), signs)
    for size in (1, 3):
        for start in range(0, len(photos), size):
            part = slice(start, start + size)
            np.testing.assert_array_equal(
                run(randaugment, photos[part], np.full((len(photos[part]), 1), index), signs[part]), whole[part]
            )


def test_ops_are_applied_in_order_of_layers(photos: Images) -> None:
    invert, solarize = OPS.index("invert"), OPS.index("solarize")
    one = RandAugment(2, 3, 32)
    ops = np.array([[invert, solarize], [solarize, invert]] * 13)
    result = run(one, photos, ops, np.ones_like(ops))
    inverted = 255 - photos

    def solarized(images: Images) -> Images:
        return np.where(images < one.levels.threshold, images, 255 - images)

    np.testing.assert_array_equal(result[0::2], solarized(inverted)[0::2])
    np.testing.assert_array_equal(result[1::2], 255 - solarized(photos)[1::2])


def test_draws_give_every_op_and_sign_equally_often() -> None:
    randaugment = RandAugment(2, 9, 32)
    plan = randaugment.draw(np.random.default_rng(0).random((32_000, 4)))
    counts = np.array(plan.counts)
    assert (abs(counts[:, 0] / 10_000 - 1) < 0.05).all()  # five geometric ops
    assert (abs(counts[:, 1:] / 2_000 - 1) < 0.12).all()
    rotations = plan.parameters[0][plan.parameters[0][:, 1] < 0]
    assert abs(len(rotations) / 2_000 - 1) < 0.2  # shear_x minus and rotate plus
