"""The targets of pseudo-labeled images, which a student learns. They are looked up in the label files, never copied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pipeline.arrays import F32Array
from pipeline.errors import UserError
from pipeline.labels.store import LabelStore
from pipeline.selection.alignment import Labels, as_selected
from pipeline.selection.selection import Selection, read_selection
from pipeline.stages.folder import stage_record

if TYPE_CHECKING:
    from pipeline.shards.dataset import Dataset


class Targets:
    """The targets of rows: a teacher's probabilities at a temperature, or its surest class (Noisy Student, section 2).

    Args:
        store: The labels, as the selection saw them.
        kind: `soft` for probabilities, `hard` for the surest class.
        temperature: The temperature of soft targets.
        smoothing: The smoothing of hard targets, as of labels. Soft targets are never smoothed (Noisy Student's code).
    """

    def __init__(
        self, store: Labels, kind: Literal["soft", "hard"], *, temperature: float = 1.0, smoothing: float = 0.0
    ) -> None:
        self.store, self.kind, self.temperature, self.smoothing = store, kind, temperature, smoothing

    def of_rows(self, rows: npt.NDArray[np.integer]) -> F32Array:
        """The targets of rows [B], as probabilities [B, C]; each row sums to 1."""
        if self.kind == "soft":
            return sharpen(self.store.probabilities(rows), self.temperature)
        one_hot = np.zeros((len(rows), self.store.num_classes), np.float32)
        one_hot[np.arange(len(rows)), self.store.label[rows]] = 1
        return smooth(one_hot, self.smoothing)


def smooth(targets_BC: F32Array, smoothing: float) -> F32Array:
    """Mix targets [B, C] with the uniform distribution (Szegedy 2016, section 7)."""
    return targets_BC * np.float32(1 - smoothing) + np.float32(smoothing / targets_BC.shape[1])


def sharpen(probs_BC: F32Array, temperature: float) -> F32Array:
    """p^(1/temperature) of probabilities [B, C], renormalized. Below 1 this sharpens; at 1 it changes no bit."""
    if temperature == 1:
        return probs_BC
    # Probabilities are taken relative to the largest, so that a low temperature does not underflow to 0/0.
    relative = probs_BC.astype(np.float64) / probs_BC.max(axis=1, keepdims=True)
    powers = relative ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def open_selection(folder: Path, unlabeled: Dataset) -> tuple[Selection, Labels]:
    """The selection of a finished select stage, and the labels that it was made from, aligned if it aligned them.

    Raises:
        UserError: the folder is not a finished select stage, it was made for other shards, or its label stage is gone
            or was made again.
    """
    record = stage_record(folder)
    if record["kind"] != "select":
        raise UserError(
            f"{folder} is a {record['kind']} stage, not a select stage; give one made by `selftrain select`"
        )
    inputs = record["inputs"]
    if inputs["unlabeled"] != unlabeled.fingerprint:
        raise UserError(
            f"{folder} selects from other unlabeled shards: expected {unlabeled.fingerprint}, found "
            f"{inputs['unlabeled']}; run `selftrain label` and `selftrain select` again into new folders (of a run: "
            "type its command again)"
        )
    store = LabelStore(folder / record["outputs"]["labels"], unlabeled)
    if inputs["labels"] != store.fingerprint:
        raise UserError(
            f"{folder} was made from other labels than {store.folder} holds: expected {inputs['labels']}, found "
            f"{store.fingerprint}; run `selftrain select` again into a new folder"
        )
    selection = read_selection(folder)
    return selection, as_selected(store, selection.summary)
