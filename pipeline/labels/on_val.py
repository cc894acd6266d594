"""What a label stage says of the images of val, whose classes are known: what its labels are worth can be computed from
it, as they are, averaged with others, or aligned.

It is made where val is predicted already, to fit temperatures. Shapes: M images of val, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import F32Array, F64Array, I32Array
from pipeline.evaluate.metrics import FloatArray, Metrics, compute_metrics
from pipeline.files import atomic_file, parsing
from pipeline.stages.folder import check_output

ON_VAL = "labels-val.npz"
"""The file in a label stage's folder; label files end otherwise."""
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class LabelsOnVal:
    """The labels of val images as label files would say them, beside their classes."""

    val: str
    """The fingerprint of val."""
    probabilities: F32Array
    """[M, C]"""
    truth: I32Array
    """[M]"""

    def metrics(self) -> Metrics:
        """What such labels are worth."""
        return compute_metrics(np.log(np.maximum(self.probabilities, _LEAST)), self.truth)


def as_stored(probabilities: FloatArray, top_k: int) -> F32Array:
    """Probabilities [M, C] as they are read from label files: those beyond the first top_k are spread evenly."""
    result = probabilities.astype(np.float32)
    rest = np.argsort(-probabilities, axis=1, kind="stable")[:, top_k:]
    if rest.shape[1]:
        shares = np.take_along_axis(probabilities, rest, axis=1).mean(axis=1, keepdims=True)
        np.put_along_axis(result, rest, shares.astype(np.float32), axis=1)
    return result


def mean_on_val(labels: Sequence[LabelsOnVal | None], weights: F64Array, top_k: int) -> LabelsOnVal | None:
    """The weighted mean of several labels, as it is stored; None if one is unknown, or of another val.

    Args:
        labels: Those of each teacher.
        weights: Their weights, which sum to 1.
        top_k: The number of classes that are stored per image.
    """
    known = [one for one in labels if one is not None]
    if len(known) < len(labels) or len({one.val for one in known}) > 1:
        return None
    mean = sum(weight * one.probabilities.astype(np.float64) for weight, one in zip(weights, known, strict=True))
    return LabelsOnVal(known[0].val, as_stored(np.asarray(mean), top_k), known[0].truth)


def write_on_val(folder: Path, labels: LabelsOnVal) -> None:
    """Write them into a label stage's folder."""
    arrays: Mapping[str, np.ndarray] = {**vars(labels), "val": np.array(labels.val)}
    with atomic_file(folder / ON_VAL) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_on_val(folder: Path) -> LabelsOnVal | None:
    """What a label stage's folder says of val; None if it says nothing: it fitted no temperature, or an older version
    made it. Raises UserError when the file is broken."""
    path = folder / ON_VAL
    if not path.exists():
        return None
    check_output(path)
    fix = "delete this file, and type the command of the label stage again"
    with parsing(f"{path} cannot be read", fix), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = LabelsOnVal(str(arrays["val"]), arrays["probabilities"], arrays["truth"])
        if found.probabilities.ndim != 2 or found.truth.shape != found.probabilities.shape[:1]:
            raise ValueError(f"its arrays are of shapes {found.probabilities.shape} and {found.truth.shape}")
    return found
