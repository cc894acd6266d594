"""The k nearest neighbors of stored features, as a classifier that fits nothing.

Shapes: N rows of the bank, M rows asked for, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.files import atomic_file, parsing
from pipeline.models.format import NEIGHBORS
from pipeline.stages.fingerprint import digest_once
from pipeline.stages.folder import check_output

TEMPERATURE = 0.07
"""That of Wu 2018, section 3.4, which DINO took over."""
_ROWS = 1024  # of those asked for, at a time
_GATHERED = 1 << 22  # targets of neighbors at a time, 16 MB


def nearest(bank: Tensor, features: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """The cosines and the rows of the nearest features of a bank, each [M, k], the nearest first.

    Of equally near ones the earlier row comes first. There are as many as the bank has, if these are fewer.

    Args:
        bank: Features of unit length [N, D].
        features: The features that are asked for, [M, D].
        neighbors: The number of neighbors k.
    """
    parts = []
    for part in features.split(_ROWS):
        ordered, rows = (F.normalize(part.float(), dim=1) @ bank.T).sort(dim=1, descending=True, stable=True)
        parts.append((ordered[:, :neighbors].clone(), rows[:, :neighbors].clone()))
    cosines, found = zip(*parts, strict=True)
    return torch.cat(cosines), torch.cat(found)


def shares_of_votes(cosines: Tensor, rows: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The share of votes of each class, [M, C], by neighbors [M, k], each of which votes with its weight times
    exp(cosine / temperature) (Wu 2018, section 3.4).

    Args:
        cosines: The cosines of the neighbors.
        rows: Their rows in the bank.
        targets: The targets of the bank, as probabilities [N, C].
        weights: The weights of the bank [N].
        temperature: The lower it is, the more the nearest ones count.
    """
    size = max(1, _GATHERED // (rows.shape[1] * targets.shape[1]))
    votes = []
    for near, local in zip(cosines.split(size), rows.split(size), strict=True):
        strength = torch.softmax(near / temperature + weights[local].log(), dim=1)
        votes.append((strength[:, :, None] * targets[local].float()).sum(1))
    return torch.cat(votes)


def vote(bank: Tensor, targets: Tensor, features: Tensor, neighbors: int = 20) -> Tensor:
    """The share of votes of each class, [M, C], by the 20 nearest rows of a bank [N, D] at a temperature of 0.07."""
    found = nearest(F.normalize(bank.float(), dim=1), features, neighbors)
    return shares_of_votes(*found, targets, torch.ones(len(bank)), TEMPERATURE)


@dataclass(frozen=True)
class Neighbors:
    """A classifier whose answers are votes of the nearest rows."""

    bank: Tensor
    """Features as they are stored, float16 [N, D]."""
    targets: Tensor
    """Probabilities, float32 [N, C]."""
    weights: Tensor
    """float32 [N]"""
    shift: Tensor
    """What the logits of each class gain, float32 [C]."""
    neighbors: int
    temperature: float
    classes: tuple[str, ...]

    @cached_property
    def unit(self) -> Tensor:
        """The bank with rows of unit length, float32 [N, D]."""
        return F.normalize(self.bank.float(), dim=1)

    def log_probs(self, features: Tensor) -> Tensor:
        """Features [M, D] -> log-probabilities float32 [M, C]."""
        return self.of_nearest(*nearest(self.unit, features, self.neighbors))

    def of_nearest(self, cosines: Tensor, rows: Tensor) -> Tensor:
        """The same, of the nearest rows [M, k] where k is at least `neighbors`.

        One neighbor more, of every class alike, keeps a class without a vote from minus infinity.
        """
        k = min(self.neighbors, rows.shape[1])
        shares = shares_of_votes(cosines[:, :k], rows[:, :k], self.targets, self.weights, self.temperature)
        smooth = (k * shares + 1 / shares.shape[1]) / (k + 1)
        return torch.log_softmax(smooth.log() + self.shift, dim=1)

    def to(self, device: torch.device) -> Neighbors:
        """The same on a device."""
        names = ("bank", "targets", "weights", "shift")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def write_neighbors(folder: Path, classifier: Neighbors) -> None:
    """Write a classifier into the folder of its stage, with the features that it compares with."""
    arrays = {name: np.asarray(value) for name, value in vars(classifier).items() if name != "unit"}
    with atomic_file(folder / NEIGHBORS) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def neighbors_digest(folder: Path) -> str:
    """The digest of a classifier: of the features that it compares with, their targets, and its settings."""
    return digest_once(check_output(folder / NEIGHBORS))


def read_neighbors(folder: Path) -> Neighbors:
    """Read what `write_neighbors` wrote. Raises UserError when the file is broken."""
    path = check_output(folder / NEIGHBORS)
    fix = f"delete {folder} and type the command of the run again"
    with parsing(f"{path} cannot be read", fix), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Neighbors(
            **{name: torch.from_numpy(arrays[name]) for name in ("bank", "targets", "weights", "shift")},
            neighbors=int(arrays["neighbors"]),
            temperature=float(arrays["temperature"]),
            classes=tuple(arrays["classes"].tolist()),
        )
