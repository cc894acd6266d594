"""Distribution alignment: labels as they read once their mean is that of a target (Berthelot 2020, section 3.1).

Label files stay as the teacher said them. What is aligned are the probabilities that are read from them, and with these
the label, its confidence, and the soft target. Shape legend: N rows of the dataset, B rows asked for, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32Array, F64Array, I32Array
from pipeline.selection.summary import Summary

_CHUNK_NUMBERS = 1 << 17
"""Probabilities at a time, so that temporaries stay around 1 MB."""
_FLOOR = 1e-6
"""It is added to both shares, as in ReMixMatch's code, so that a class that is never predicted has a finite weight."""
_UNITS = 2.0**32
Rows = npt.NDArray[np.integer]


class Labels(Protocol):
    """What a selection and its targets read of labels, as a teacher said them or aligned."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def label(self) -> I32Array:
        """The surest class, [N]."""

    @property
    def confidence(self) -> F32Array:
        """Its probability, [N]."""

    @property
    def log_odds(self) -> F32Array:
        """The logarithm of that probability over the others', [N]."""

    def probabilities(self, rows: Rows) -> F32Array:
        """The probabilities of rows, [B, C]."""

    def __len__(self) -> int:
        """N."""


class Aligned:
    """Labels whose probabilities are multiplied by a weight per class, [C], and renormalized."""

    def __init__(self, labels: Labels, weights: F64Array) -> None:
        self.labels, self.weights = labels, weights
        self.num_classes = labels.num_classes

    def __len__(self) -> int:
        return len(self.labels)

    def probabilities(self, rows: Rows) -> F32Array:
        """The aligned probabilities of rows, [B, C]."""
        return aligned(self.labels.probabilities(rows), self.weights)

    @property
    def label(self) -> I32Array:
        """The surest class after alignment, [N]."""
        return self._surest[0]

    @property
    def confidence(self) -> F32Array:
        """Its probability, [N]."""
        return self._surest[1]

    @property
    def log_odds(self) -> F32Array:
        """The logarithm of that probability over the others', [N]. As before alignment it does not saturate."""
        return self._surest[2]

    @cached_property
    def _surest(self) -> tuple[I32Array, F32Array, F32Array]:
        label = np.empty(len(self), np.int32)
        log_odds = np.empty(len(self), np.float32)
        with np.errstate(divide="ignore"):  # a probability of 0 has a logarithm of -inf, which is meant
            log_weights = np.log(self.weights)
            for rows in _chunks(len(self), self.num_classes):
                logs = np.log(self.labels.probabilities(rows).astype(np.float64)) + log_weights
                label[rows] = surest = logs.argmax(axis=1)
                own = np.take_along_axis(logs, surest[:, None], axis=1)
                others = np.exp(logs - own)
                np.put_along_axis(others, surest[:, None], 0.0, axis=1)
                log_odds[rows] = -np.log(others.sum(axis=1))
        confidence = np.asarray(1 / (1 + np.exp(-log_odds.astype(np.float64))), np.float32)
        return label, confidence, log_odds


def aligned(probabilities: F32Array, weights: F64Array) -> F32Array:
    """Probabilities [B, C] times the weight of each class, [C], renormalized."""
    weighted = probabilities * weights
    return np.asarray(weighted / weighted.sum(axis=1, keepdims=True), np.float32)


def alignment(labels: Labels, target: F64Array) -> F64Array:
    """The weight of each class, [C], of labels that are to have the shares `target` [C] on average: target / mean.

    The mean is a function of the set of rows, because its sums are exact, in units of 2^-32.
    """
    units = np.zeros(labels.num_classes, np.uint64)
    for rows in _chunks(len(labels), labels.num_classes):
        units += exact_units(labels.probabilities(rows)).sum(axis=0, dtype=np.uint64)
    mean = from_units(units) / max(len(labels), 1)
    return np.asarray((target + _FLOOR) / (mean + _FLOOR))


def as_selected(labels: Labels, summary: Summary) -> Labels:
    """The labels as a selection with this summary saw them."""
    weights = [c["weight"] for c in summary["classes"] if "weight" in c]
    return Aligned(labels, np.array(weights)) if weights else labels


def exact_units(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint64]:
    """Values in [0, 1] in units of 2^-32, rounded down. Their sums do not depend on the order, up to 2^32 of them."""
    return (values.astype(np.float64) * _UNITS).astype(np.uint64)


def from_units(units: npt.NDArray[np.uint64]) -> F64Array:
    """What a sum of `exact_units` stands for."""
    return np.asarray(units / _UNITS)


def _chunks(length: int, num_classes: int) -> Iterator[Rows]:
    size = max(1, _CHUNK_NUMBERS // num_classes)
    return (np.arange(start, min(start + size, length)) for start in range(0, length, size))
