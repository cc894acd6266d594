"""The choice of a classifier by nearest neighbors: how many of them vote, and how much the nearest count.

Shapes: M rows of val.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from pipeline.arrays import F32Array
from pipeline.evaluate.metrics import IntArray, Metrics, compute_metrics
from pipeline.features.neighbors import Neighbors, nearest

NUMBERS = (5, 10, 20, 50, 100)
"""The numbers of neighbors that are tried."""
TEMPERATURES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.2)
"""The temperatures that are tried, around the 0.07 of Wu 2018."""


class Voting(NamedTuple):
    """A classifier by neighbors, and what it is worth on val."""

    classifier: Neighbors
    log_probs: F32Array
    metrics: Metrics


def try_votes(base: Neighbors, held_out: Tensor, labels: IntArray) -> Iterator[Voting]:
    """Yield a classifier per number of neighbors and temperature, from few neighbors to many.

    Args:
        base: A classifier by any number of neighbors, at any temperature.
        held_out: The features of val [M, D].
        labels: The classes of val [M].
    """
    found = nearest(base.unit, held_out, NUMBERS[-1])
    for number in sorted({min(number, len(base.bank)) for number in NUMBERS}):
        for temperature in TEMPERATURES:
            classifier = replace(base, neighbors=number, temperature=temperature)
            log_probs = classifier.of_nearest(*found).numpy()
            yield Voting(classifier, log_probs, compute_metrics(log_probs, labels))
