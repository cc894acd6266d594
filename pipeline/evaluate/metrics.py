"""The figures of a model on a split: accuracies with an interval, likelihood and calibration, in numpy alone.

Shapes: N samples, C classes. Figures are computed in float64 over the whole split at once, so neither a batch size nor
the order of samples can change them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
import numpy.typing as npt
from annotated_types import Len
from pydantic import ConfigDict
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.evaluate.per_class import per_class

NUM_BINS = 15
NORMAL_95 = 1.959963984540054
"""The normal quantile of a two-sided 95% interval."""
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


class MetricsJson(TypedDict):
    """What `Metrics.to_json` returns."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    top1: float
    top5: float
    nll: float
    ece: float
    num_samples: int
    interval: Annotated[list[float], Len(2, 2)]
    balanced_accuracy: NotRequired[float]
    """Files of earlier versions have neither this figure nor the next one."""
    macro_f1: NotRequired[float]


class NotFinite(UserError):
    """A model's weights are finite, but its predictions are not."""


@dataclass(frozen=True)
class Metrics:
    """The figures of one model on one split. Accuracies, ece and interval are fractions; nll is in nats."""

    top1: float
    top5: float
    nll: float
    ece: float
    num_samples: int
    interval: tuple[float, float]
    """The Wilson 95% interval of top1."""
    balanced_accuracy: float | None = None
    """The mean accuracy over the classes that have images; None in files of earlier versions."""
    macro_f1: float | None = None
    """The mean F1 over the classes that have images."""

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.top1:.2%} of {self.num_samples:,} images are right ({low:.2%} to {high:.2%}), nll {self.nll:.4f}, "
            f"calibration error {self.ece:.2%}"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {**known, "interval": list(self.interval)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Metrics:
        """The figures from what `to_json` returned."""
        low, high = value["interval"]
        return cls(**{**value, "interval": (low, high)})


@dataclass(frozen=True)
class ReliabilityBins:
    """Samples grouped by their confidence into bins of equal width over [0, 1]. The means of empty bins are nan."""

    edges: npt.NDArray[np.float64]
    """The edges of the bins, [bins + 1]."""
    counts: npt.NDArray[np.int64]
    """The number of samples in each bin, [bins]."""
    confidence: npt.NDArray[np.float64]
    """The mean confidence in each bin, [bins]."""
    accuracy: npt.NDArray[np.float64]
    """The share of right answers in each bin, [bins]."""

    @property
    def ece(self) -> float:
        """The expected calibration error: the gap between confidence and accuracy, averaged over samples (Guo 2017)."""
        full = self.counts > 0
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float(np.average(gaps, weights=self.counts[full])) if full.any() else math.nan


def compute_metrics(log_probs: FloatArray, labels: IntArray) -> Metrics:
    """The metrics of log-probabilities [N, C] against labels [N].

    Raises:
        UserError: there are no samples, shapes do not fit, a label is out of range, or a value is nan.
    """
    _check(log_probs, labels)
    rows = np.arange(len(labels))
    of_classes = per_class(labels, log_probs.argmax(axis=1), log_probs.shape[1])
    return Metrics(
        top1=top_k_accuracy(log_probs, labels, 1),
        top5=top_k_accuracy(log_probs, labels, 5),
        nll=float(-log_probs[rows, labels].astype(np.float64).mean()),
        ece=reliability(np.exp(log_probs.max(axis=1).astype(np.float64)), log_probs.argmax(axis=1) == labels).ece,
        num_samples=len(labels),
        interval=wilson_interval(int((_rank(log_probs, labels) < 1).sum()), len(labels)),
        balanced_accuracy=of_classes.balanced_accuracy,
        macro_f1=of_classes.macro_f1,
    )


def top_k_accuracy(log_probs: FloatArray, labels: IntArray, k: int) -> float:
    """The share of labels [N] that are among the k largest of [N, C]; ties go to the lower class, as in argmax."""
    return float((_rank(log_probs, labels) < k).mean())


def wilson_interval(num_right: int, num_samples: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927). Unlike the normal interval it stays in [0, 1] and holds near 1."""
    z = NORMAL_95
    share = num_right / num_samples
    spread = z * math.sqrt(share * (1 - share) / num_samples + (z / (2 * num_samples)) ** 2)
    scale = 1 + z * z / num_samples
    middle = share + z * z / (2 * num_samples)
    # Near 0 and 1 a bound may round past the share, of which a plot would make a negative error.
    return min(share, max(0.0, (middle - spread) / scale)), max(share, min(1.0, (middle + spread) / scale))


def paired_difference(
    right: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], quantile: float = NORMAL_95
) -> tuple[float, float, float]:
    """The accuracy of one model minus another's on the same N samples, with its interval: (difference, low, high).

    Both masks are [N]; the normal quantile says how wide the interval is, by default 95%. It is the Wald interval with
    the +2 adjustment of Agresti and Min (2005). Pairing removes what the samples have in common, so it is sharper than
    a comparison of two intervals.
    """
    n = len(right)
    gained, lost = int((right & ~other).sum()), int((~right & other).sum())
    adjusted = (gained - lost) / (n + 2)
    spread = quantile * math.sqrt((gained + lost + 1) / (n + 2) - adjusted**2) / math.sqrt(n + 2)
    return (gained - lost) / n, adjusted - spread, adjusted + spread


def reliability(confidence: FloatArray, right: npt.NDArray[np.bool_], num_bins: int = NUM_BINS) -> ReliabilityBins:
    """Group samples [N] by confidence into bins (a, b] of equal width (Guo 2017, section 2); 0 is in the first bin."""
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    divisor = np.where(counts > 0, counts, np.nan)
    return ReliabilityBins(
        edges=edges,
        counts=counts.astype(np.int64),
        confidence=np.bincount(bins, weights=confidence.astype(np.float64), minlength=num_bins) / divisor,
        accuracy=np.bincount(bins, weights=right.astype(np.float64), minlength=num_bins) / divisor,
    )


def _rank(log_probs: FloatArray, labels: IntArray) -> npt.NDArray[np.int64]:
    """The place of each label's class among all classes, [N]: 0 for the class with the largest value."""
    own = log_probs[np.arange(len(labels)), labels][:, None]
    larger = (log_probs > own).sum(axis=1)
    tied_before = ((log_probs == own) & (np.arange(log_probs.shape[1]) < labels[:, None])).sum(axis=1)
    return np.asarray(larger + tied_before, dtype=np.int64)


def _check(log_probs: FloatArray, labels: IntArray) -> None:
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
        raise UserError(f"log_probs {log_probs.shape} and labels {labels.shape} do not fit; want [N, C] and [N]")
    if not len(labels):
        raise UserError("there are no samples to evaluate; give a split that has some")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= log_probs.shape[1]:
        wrong = low if low < 0 else high
        raise UserError(
            f"label {wrong} is out of range: the model has {log_probs.shape[1]} classes; evaluate on labeled images"
        )
    if np.isnan(log_probs).any():
        raise NotFinite(f"{int(np.isnan(log_probs).any(axis=1).sum())} predictions are nan; the model is broken")
