"""Run every method on every seed, count how often it separates the moons, and draw its decision boundaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.demos.moons.config import TwoMoons
from pipeline.demos.moons.methods import Points, Tick, meta_pseudo_labels, pseudo_label, supervised, uda
from pipeline.demos.moons.networks import Networks
from pipeline.demos.moons.plot import draw_boundaries
from pipeline.errors import UserError
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.reader import read_vectors

NUM_METHODS = 6


@dataclass(frozen=True)
class Comparison:
    """The results of all methods."""

    accuracy: Mapping[str, list[float]]
    """Method -> its accuracy on test for each seed."""
    num_separated: Mapping[str, int]
    """Method -> the number of seeds for which it separates the moons."""
    picture: bytes
    """A PNG of the decision boundaries."""


def compare(config: TwoMoons, tick: Tick) -> Comparison:
    """Train every method; calls `tick` with the number of steps after each of them.

    Raises:
        UserError: the data are not points in the plane, or do not have two classes.
    """
    torch.set_num_threads(config.threads)
    labeled, test = open_split(config.data, "labeled"), open_split(config.data, "test")
    points = Points(
        labeled=_read(labeled),
        labels=torch.from_numpy(labeled.labels.astype(np.int64)),
        unlabeled=_read(open_split(config.data, "unlabeled")),
    )
    seeds = [config.seed + number for number in range(config.num_seeds)]
    off, _ = meta_pseudo_labels(points, config, seeds, tick, feedback="off")
    meta, _ = meta_pseudo_labels(points, config, seeds, tick)
    wrong, _ = meta_pseudo_labels(points, config, seeds, tick, scale=-config.meta.scale)
    teacher = supervised(points, config, seeds, tick)
    models = {
        "supervised": teacher,
        "pseudo_label": pseudo_label(points, config, seeds, tick, teacher),
        "uda": uda(points, config, seeds, tick),
        "off": off,
        "meta": meta,
        "wrong_sign": wrong,
    }
    found = _read(test), torch.from_numpy(test.labels.astype(np.int64))
    accuracy = {name: _accuracy(model, *found) for name, model in models.items()}
    separated = {name: sum(value >= config.separated for value in values) for name, values in accuracy.items()}
    return Comparison(accuracy, separated, draw_boundaries(models, accuracy, points, found))


def _read(dataset: Dataset) -> Tensor:
    """The points of a split, float32 [N, 2]."""
    points = read_vectors(dataset)
    if points.shape[1] != 2 or len(dataset.classes) != 2:
        raise UserError(
            f"{dataset.shards[0].path} holds {len(dataset.classes)} classes of vectors of length {points.shape[1]}; "
            "the two moons are 2 classes of points in the plane (python -m pipeline.demos.moons.data writes them)"
        )
    return torch.from_numpy(points)


@torch.no_grad()
def _accuracy(model: Networks, points: Tensor, labels: Tensor) -> list[float]:
    """The accuracy of each of S networks on points [N, 2] with labels [N]."""
    right = model(points[:, None]).argmax(-1) == labels
    return [float(value) for value in right.double().mean(1)]
