"""The moons stage: every method on every seed, the count of separations, and a picture of the decision boundaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import progress
from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.jobs import MoonsJob
from pipeline.moons.methods import Points, Tick, meta_pseudo_labels, pseudo_label, supervised, uda
from pipeline.moons.networks import Networks
from pipeline.moons.plot import draw_boundaries
from pipeline.runtime import environment
from pipeline.shards.dataset import Dataset, open_split
from pipeline.shards.read import read_vectors
from pipeline.stage import open_stage, write_bytes, write_json

RESULT, PICTURE = "two_moons.json", "two_moons.png"


def moons_inputs(job: MoonsJob) -> tuple[dict[str, Any], dict[str, str]]:
    """What the stage's output is a function of."""
    config = {"seed": job.seed, "data": semantic(job.data), "two_moons": semantic(job.two_moons)}
    splits = ("labeled", "unlabeled", "test")
    return config, {split: open_split(job.data, split).fingerprint for split in splits}  # type: ignore[arg-type]


def run_moons(job: MoonsJob) -> None:
    """Train every method; a killed stage starts over, which takes minutes.

    Raises:
        UserError: the data are not points in the plane, or not of two classes.
    """
    torch.set_num_threads(max(job.runtime.threads, 1))
    env, accept = environment(job.runtime), job.accept_environment
    stage = open_stage(job.out, "moons", *moons_inputs(job), env, accept_environment=accept)
    if stage.complete:
        return
    config = job.two_moons
    labeled, test = open_split(job.data, "labeled"), open_split(job.data, "test")
    points = Points(
        labeled=_read(labeled),
        labels=torch.from_numpy(labeled.labels.astype(np.int64)),
        unlabeled=_read(open_split(job.data, "unlabeled")),
    )
    seeds = [job.seed + number for number in range(config.num_seeds)]
    tick = _ticker(job, num_methods=6)
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
    accuracies = {name: _accuracy(model, *found) for name, model in models.items()}
    figures: dict[str, Any] = {"num_seeds": config.num_seeds}
    for name, values in accuracies.items():
        figures[f"{name}_separated"] = sum(value >= config.separated for value in values)
    write_json(job.out / RESULT, {**figures, "accuracy": accuracies})
    write_bytes(job.out / PICTURE, draw_boundaries(models, accuracies, points, found))
    stage.finish(**figures)


def _read(dataset: Dataset) -> Tensor:
    """Points [N, 2]."""
    points = read_vectors(dataset)
    if points.shape[1] != 2 or len(dataset.classes) != 2:
        raise UserError(
            f"{dataset.shards[0].path} holds {len(dataset.classes)} classes of vectors of length {points.shape[1]}; "
            "method two_moons needs 2 classes of points in the plane (python -m pipeline.moons.data writes them)"
        )
    return torch.from_numpy(points)


@torch.no_grad()
def _accuracy(model: Networks, points: Tensor, labels: Tensor) -> list[float]:
    """The accuracy of every network, [S]."""
    right = model(points[:, None]).argmax(-1) == labels
    return [float(value) for value in right.double().mean(1)]


def _ticker(job: MoonsJob, num_methods: int) -> Tick:
    done, total = 0, num_methods * job.two_moons.steps

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if done % 100 == 0:
            progress.report(job.out, done, total, "steps", "")

    return tick
