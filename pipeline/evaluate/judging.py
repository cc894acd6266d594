"""Two models on the same images, by the figure that judges them (`rounds.judge_by`).

Shapes: N samples, C classes, M = N and four imagined images per class.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.arrays import F64Array
from pipeline.config import JudgeBy
from pipeline.evaluate.metrics import NORMAL_95, paired_difference
from pipeline.evaluate.per_class import Ids, per_class

TITLES: dict[JudgeBy, str] = {"top1": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}
"""The names that people read."""


def figure_of(label: Ids, pred: Ids, by: JudgeBy) -> float:
    """One figure of the answers [N] to labels [N]."""
    if by == "top1":
        return float((label == pred).mean())
    found = per_class(label, pred)
    return found.balanced_accuracy if by == "balanced_accuracy" else found.macro_f1


def compare(label: Ids, ours: Ids, theirs: Ids, by: JudgeBy, quantile: float = NORMAL_95) -> tuple[float, float, float]:
    """One model's figure minus another's on the same N samples, with its interval: (difference, low, high).

    The normal quantile says how wide the interval is, by default 95%. Of `top1` it is `paired_difference`. The others
    are means over classes, so its idea is applied per class: each class with images gets two imagined ones more, half
    an image of each of the four pairs of right and wrong answers (Agresti and Min 2005). The variance follows from the
    influence of each image on the difference (for F1: Takahashi 2022).
    Classes of few images therefore make the interval wide, and it needs no random draws.
    """
    if by == "top1":
        return paired_difference(ours == label, theirs == label, quantile)
    classes = np.unique(label)
    imagined = np.tile(classes, 4)
    nothing = np.full(len(classes), -1, imagined.dtype)  # an answer that is wrong, and of no class
    labels = np.concatenate([label, imagined])
    pairs = (ours, [classes, classes, nothing, nothing]), (theirs, [classes, nothing, classes, nothing])
    weights = np.concatenate([np.ones(len(label)), np.full(len(imagined), 0.5)])
    (our_mean, our_influence), (their_mean, their_influence) = (
        _influences(labels, np.concatenate([answers, *more]), weights, by) for answers, more in pairs
    )
    spread = quantile * math.sqrt(float(weights @ (our_influence - their_influence) ** 2))
    adjusted = our_mean - their_mean
    difference = figure_of(label, ours, by) - figure_of(label, theirs, by)
    return difference, adjusted - spread, adjusted + spread


def _influences(label: Ids, pred: Ids, weights: F64Array, by: JudgeBy) -> tuple[float, F64Array]:
    """The figure of weighted samples, and its derivative in each weight, [M]; an answer of -1 is none."""
    num_classes = 1 + int(max(label.max(), pred.max()))
    right, named = label == pred, pred >= 0

    def total(of: Ids, where: np.ndarray) -> F64Array:
        return np.bincount(of[where], weights[where], num_classes).astype(np.float64)

    count, true = total(label, label >= 0), total(label, right)
    present = count > 0
    if by == "balanced_accuracy":
        whole, parts = count, true
        rate = _divide(parts, whole)
        influence = (right - rate[label]) / whole[label]
    else:
        whole, parts = count + total(pred, named), 2 * true
        rate = _divide(parts, whole)
        per_image = np.where(present, _divide(rate, whole), 0.0)
        influence = 2 * right / whole[label] - per_image[label]
        influence[named] -= per_image[pred[named]]
    return float(rate[present].mean()), influence / present.sum()


def _divide(part: F64Array, whole: F64Array) -> F64Array:
    return part / np.where(whole > 0, whole, 1.0)
