"""The answers of a model on a split, one file per model: what paired tests and calibration plots are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipeline.arrays import BoolArray, F32Array, I32Array
from pipeline.errors import UserError
from pipeline.files import atomic_path


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
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Predictions(arrays["label"], arrays["pred"], arrays["confidence"])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete the folder {path.parent} and type the command of the run again"
        ) from error


def write_predictions(path: Path, log_probs: np.ndarray, labels: np.ndarray) -> None:
    """Write label, prediction and confidence of each sample, of [N, C] and [N], for the report's calibration plots."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            label=labels.astype(np.int32),
            pred=log_probs.argmax(1).astype(np.int32),
            confidence=np.exp(log_probs.max(1)).astype(np.float32),
        )
