"""The methods that are compared on the two moons. Each trains the networks of all seeds at once.

Shapes: S seeds, L labeled points, U unlabeled ones, B unlabeled ones in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.config import NetworkSettings, Uda, changed
from pipeline.demos.moons.config import TwoMoons
from pipeline.demos.moons.networks import Networks
from pipeline.errors import UserError
from pipeline.methods.meta.step import BELOW_1, Baseline, MetaBatch, meta_step
from pipeline.methods.uda.learner import uda_weight_at
from pipeline.randomness import key_of, uniforms
from pipeline.stages.ranks import Ranks
from pipeline.train.ema import Ema
from pipeline.train.losses import mean_cross_entropy
from pipeline.train.network import Network

Tick = Callable[[int], None]
_BLOCK = 50
"""The number of steps whose random numbers are drawn at once."""


@dataclass(frozen=True)
class Points:
    """The points as the methods see them, without the classes of the unlabeled ones."""

    labeled: Tensor
    """The labeled points, float32 [L, 2]."""
    labels: Tensor
    """Their classes, int64 [L]."""
    unlabeled: Tensor
    """The unlabeled points, float32 [U, 2]."""


class Batches:
    """Endless batches of unlabeled points. Each seed has its own draws of points, of jitter and of labels."""

    def __init__(self, points: Points, config: TwoMoons, seeds: list[int]) -> None:
        self.points, self.config, self.seeds = points, config, seeds
        self._block: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> MetaBatch:
        """The batch of one step, a function of the seeds and the step alone."""
        draws = self._draws(step)  # [S, B, 6]
        rows = (draws[..., 0] * len(self.points.unlabeled)).long()
        weak = self.points.unlabeled[rows].transpose(0, 1)  # [B, S, 2]
        labeled = self.points.labeled[:, None].expand(-1, len(self.seeds), -1)
        return MetaBatch(
            labeled=labeled,
            labels=self.points.labels,
            weak=weak,
            strong=weak + self.config.jitter * _normal(draws[..., 2:6]).transpose(0, 1),
            draws=draws[..., 1],
            stored=torch.empty(0),
        )

    def _draws(self, step: int) -> Tensor:
        block, place = divmod(step, _BLOCK)
        if self._block is None or self._block[0] != block:
            size = self.config.batch_size
            positions = np.arange(block * _BLOCK * size, (block + 1) * _BLOCK * size)
            draws = [uniforms(key_of(seed, "sample", "moons"), positions, 6) for seed in self.seeds]
            below_1 = torch.from_numpy(np.stack(draws)).float().clamp_(max=BELOW_1)
            self._block = block, below_1.view(len(self.seeds), _BLOCK, size, 6)
        return self._block[1][:, place]


def _normal(draws: Tensor) -> Tensor:
    """Uniform numbers [..., 4] -> standard normal numbers [..., 2] (Box and Muller 1958)."""
    radius = torch.sqrt(-2 * torch.log1p(-draws[..., :2]))
    return radius * torch.cos(2 * torch.pi * draws[..., 2:])


def _network(config: TwoMoons, seeds: list[int], name: str) -> Network:
    accelerator = Accelerator(cpu=True)
    model = Networks(seeds, name, config.hidden, config.activation, config.init)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=config.teacher_lr))
    settings = NetworkSettings(label_smoothing=0.0)
    return Network(accelerator, Ranks(), settings, model, model, optimizer, Ema(model, 0.0))


def supervised(points: Points, config: TwoMoons, seeds: list[int], tick: Tick) -> Networks:
    """Train on the labeled points alone."""
    return _teach(points, config, seeds, tick, Uda(weight=0.0))


def uda(points: Points, config: TwoMoons, seeds: list[int], tick: Tick) -> Networks:
    """Train on the labeled points, and on consistency between each unlabeled point and its jittered copy (Xie 2019)."""
    return _teach(points, config, seeds, tick, changed(config.uda, labeled_weight=1.0))


def _teach(points: Points, config: TwoMoons, seeds: list[int], tick: Tick, uda: Uda) -> Networks:
    teacher, batches = _network(config, seeds, "teacher"), Batches(points, config, seeds)
    for step in range(config.steps):
        rates = {"uda_weight": uda_weight_at(step, uda), "teacher_lr": config.teacher_lr, "student_lr": 0.0}
        meta_step(teacher, None, batches.batch(step), config.meta, uda, Baseline(0.0), **rates)
        tick(1)
    return _model(teacher)


def pseudo_label(points: Points, config: TwoMoons, seeds: list[int], tick: Tick, teacher: Networks) -> Networks:
    """Train a new network on the labeled points, and on the supervised one's labels of the others (Lee 2013)."""
    student, batches = _network(config, seeds, "student"), Batches(points, config, seeds)
    for step in range(config.steps):
        batch = batches.batch(step)
        with torch.no_grad():
            labels_hat = teacher(batch.weak).argmax(-1)
        logits = student.model(torch.cat([batch.labeled, batch.strong]))
        num_labeled = len(batch.labels)
        loss = mean_cross_entropy(logits[:, :num_labeled], batch.labels)
        loss = loss + mean_cross_entropy(logits[:, num_labeled:], labels_hat)
        student.accelerator.backward(loss.sum())
        student.update(config.student_lr)
        tick(1)
    return _model(student)


def meta_pseudo_labels(
    points: Points, config: TwoMoons, seeds: list[int], tick: Tick, **changes: Any
) -> tuple[Networks, Networks]:
    """Train a student and its teacher with the config's feedback, or with `changes` to it; returns both (Pham 2021)."""
    meta = changed(config.meta, **changes)
    teacher, student = _network(config, seeds, "teacher"), _network(config, seeds, "student")
    batches, baseline = Batches(points, config, seeds), Baseline(meta.baseline_decay)
    for step in range(config.steps):
        meta_step(
            teacher,
            student,
            batches.batch(step),
            meta,
            config.uda,
            baseline,
            uda_weight=uda_weight_at(step, config.uda),
            teacher_lr=config.teacher_lr,
            student_lr=config.student_lr if step >= meta.student_wait else 0.0,
        )
        tick(1)
    return _model(student), _model(teacher)


def _model(network: Network) -> Networks:
    model = network.raw_model.eval()
    assert isinstance(model, Networks)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise UserError("the weights of a network are not finite; lower teacher_lr or student_lr")
    return model
