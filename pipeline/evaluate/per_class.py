"""The figures of each class, and those in which every class counts alike, however many images it has.

Shapes: N samples, C classes. Accuracy hides a class that has few images; these figures do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F64Array, I64Array

Ids = npt.NDArray[np.integer]
UNEVEN = 3.0
"""Classes are uneven if the largest has more than this many times the images of the smallest."""


@dataclass(frozen=True)
class PerClass:
    """The counts of each class and the figures that follow from them; each array is [C]."""

    count: I64Array
    """The images of the class."""
    predicted: I64Array
    """The images that are taken for it."""
    right: I64Array
    """Those that are both."""

    @property
    def precision(self) -> F64Array:
        """The share of right answers among those that name the class; nan if none does."""
        return _ratio(self.right, self.predicted)

    @property
    def recall(self) -> F64Array:
        """The share of the class's images that are recognized; nan if it has none."""
        return _ratio(self.right, self.count)

    @property
    def f1(self) -> F64Array:
        """The harmonic mean of precision and recall; nan for a class without images."""
        return np.where(self.present, _ratio(2 * self.right, self.count + self.predicted), np.nan)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether the class has images. Means over classes leave out those without."""
        return self.count > 0

    @property
    def least_recognized(self) -> I64Array:
        """The classes that have images, that of the lowest recall first."""
        present = np.flatnonzero(self.present)
        return present[np.argsort(self.recall[present], kind="stable")]

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images (Brodersen 2010)."""
        return float(self.recall[self.present].mean())

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have images."""
        return float(self.f1[self.present].mean())

    @property
    def imbalance(self) -> float:
        """The images of the largest class per image of the smallest one that has any."""
        found = self.count[self.present]
        return float(found.max() / found.min())

    @property
    def is_uneven(self) -> bool:
        """Whether accuracy says little of the small classes."""
        return self.imbalance > UNEVEN


def per_class(label: Ids, pred: Ids, num_classes: int | None = None) -> PerClass:
    """The figures of each class, of labels [N] and answers [N], by default up to the last class that occurs."""
    num_classes = 1 + int(max(label.max(), pred.max())) if num_classes is None else num_classes
    counts = [np.bincount(ids, minlength=num_classes).astype(np.int64) for ids in (label, pred, label[label == pred])]
    return PerClass(*counts)


def confusion_matrix(label: Ids, pred: Ids, num_classes: int) -> I64Array:
    """The number of images of each class (rows) that are taken for each class (columns), [C, C]."""
    cells = label.astype(np.int64) * num_classes + pred
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def taken_for(label: Ids, pred: Ids, of: int) -> dict[int, int]:
    """The wrong answers for images of one class: class -> number of images, the most frequent first."""
    classes, counts = np.unique(pred[(label == of) & (pred != of)], return_counts=True)
    order = np.lexsort((classes, -counts))
    return dict(zip(classes[order].tolist(), counts[order].tolist(), strict=True))


def _ratio(part: I64Array, whole: I64Array) -> F64Array:
    return part / np.where(whole > 0, whole, np.nan)
