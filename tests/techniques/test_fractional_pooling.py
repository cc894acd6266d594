"""Fractional max pooling against torch's module, with the same draws, and against the formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.alterations import refusing_escapes
from pipeline.models.pooling import FractionalMaxPool, with_fractional_pooling

RATIO = 0.7


def starts(length: int, out: int, u: float) -> list[int]:
    """Graham 2014, section 2: floor(alpha (i + u)), from 0 on; the last region ends at the border."""
    alpha = np.float32(length - 2) / np.float32(out - 1)
    first = int(np.float32(u) * alpha)
    return [int((np.float32(i) + np.float32(u)) * alpha) - first for i in range(out - 1)] + [length - 2]


@pytest.mark.parametrize("is_training", [True, False])
def test_regions_are_those_of_torch_and_of_the_formula(is_training: bool) -> None:
    images = torch.randn(3, 4, 13, 10)
    torch.manual_seed(5)
    found = FractionalMaxPool(RATIO).train(is_training)(images)
    torch.manual_seed(5)
    draws = torch.rand(3, 1, 2) if is_training else torch.full((3, 1, 2), 0.5)
    draws = draws.expand(3, 4, 2).contiguous()
    theirs = nn.FractionalMaxPool2d(2, output_ratio=RATIO, _random_samples=draws)
    assert torch.equal(found, theirs(images))
    assert found.shape == (3, 4, int(13 * RATIO), int(10 * RATIO))
    expected = np.empty(found.shape, np.float32)
    for n in range(3):
        u_width, u_height = draws[n, 0].tolist()
        for i, top in enumerate(starts(13, 9, u_height)):
            for j, left in enumerate(starts(10, 7, u_width)):
                expected[n, :, i, j] = images[n, :, top : top + 2, left : left + 2].numpy().max((1, 2))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_the_places_are_random_in_training_and_fixed_in_evaluation() -> None:
    images = torch.randn(2, 3, 32, 32)
    pool = FractionalMaxPool(RATIO)
    assert not torch.equal(pool(images), pool(images))
    pool.eval()
    assert torch.equal(pool(images), pool(images))


def test_every_max_pooling_of_stride_2_is_replaced_and_no_other() -> None:
    model = build("resnet9", 10, model_args={"fractional_pooling": RATIO}).eval()
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (10, 10)  # type: ignore[operator]
    parts = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2))
    assert len(with_fractional_pooling(parts, RATIO)) == 2
    assert isinstance(parts[0], nn.MaxPool2d)


def test_what_cannot_pool_so_is_refused() -> None:
    with pytest.raises(UserError, match=r"`fractional_pooling`: WideResNet has no max pooling .*set it to null"):
        build("wide_resnet10_1", 10, model_args={"fractional_pooling": RATIO})
    with pytest.raises(UserError, match=r"`fractional_pooling`: 1.5 is not between"):
        build("resnet9", 10, model_args={"fractional_pooling": 1.5})


def test_a_network_that_pools_by_a_function_is_refused() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(nn.MaxPool2d(3, 1, 1)(x), 2)

    given = {"fractional_pooling": RATIO}
    with pytest.raises(UserError, match=r"`fractional_pooling`: Functional calls max_pool2d as a function 2 times"):  # noqa: SIM117
        with refusing_escapes(model := Functional(), given):
            model(torch.zeros(1, 3, 8, 8))
    with refusing_escapes(model := nn.MaxPool2d(3, 1, 1), given):  # type: ignore[assignment]
        model(torch.zeros(1, 3, 8, 8))
