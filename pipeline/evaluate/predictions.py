"""The answers of a model on a split, one file per model: what paired tests and calibration plots are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.arrays import BoolArray, F32Array, I32Array
from pipeline.files import atomic_file, parsing
from pipeline.stages.folder import check_output


@dataclass(frozen=True)
class Predictions:
    """One model's answers on one split of N samples; each array is [N]."""

    label: I32Array
    pred: I32Array
    confidence: F32Array

    @property
    def right(self) -> BoolArray:
        """Whether each answer is the label, [N]."""
        return np.equal(self.label, self.pred)


def read_predictions(path: Path) -> Predictions | None:
    """The answers in an npz file; None if there is no such file. Raises UserError when it is broken."""
    if not path.exists():
        return None
    check_output(path)
    with parsing(f"{path} cannot be read", f"delete the folder {path.parent} and type the command of the run again"):
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = Predictions(arrays["label"], arrays["pred"], arrays["confidence"])
        kinds = [(values.dtype.kind, values.ndim, len(values)) for values in vars(found).values()]
        if kinds != [(kind, 1, len(found.label)) for kind in ("i", "i", "f")]:
            raise ValueError(f"its arrays are {kinds}")
    return found


def predictions_of(log_probs: np.ndarray, labels: np.ndarray) -> Predictions:
    """The answers that log-probabilities [N, C] give, beside labels [N]."""
    return Predictions(
        label=labels.astype(np.int32),
        pred=log_probs.argmax(1).astype(np.int32),
        confidence=np.exp(log_probs.max(1)).astype(np.float32),
    )


def write_predictions(path: Path, log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Write label, prediction and confidence of each sample, of [N, C] and [N], for what the report makes of them."""
    with atomic_file(path) as file:
        np.savez(file, **vars(predictions_of(log_probs, labels)))
