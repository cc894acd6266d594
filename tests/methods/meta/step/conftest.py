"""A teacher, a student and a batch, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.toys import NUM_LABELED, NUM_UNLABELED, SIZE, mlp, network

from pipeline.methods.meta.step import MetaBatch
from pipeline.train.network import Network


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """First-order identities hold to 1e-8 in float64 only."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def teacher() -> Network:
    return network(mlp(1))


@pytest.fixture
def student() -> Network:
    return network(mlp(2))


@pytest.fixture
def batch() -> MetaBatch:
    torch.manual_seed(3)
    return MetaBatch(
        labeled=torch.randn(NUM_LABELED, SIZE),
        labels=torch.tensor([0, 1, 2, 1]),
        weak=torch.randn(NUM_UNLABELED, SIZE),
        strong=torch.randn(NUM_UNLABELED, SIZE),
        draws=torch.rand(NUM_UNLABELED),
        stored=torch.empty(NUM_UNLABELED, 0),
    )
