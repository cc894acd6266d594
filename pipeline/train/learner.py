"""The contract between the loop and a method: a learner turns the batches of a step into updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch

from pipeline.randomness import key_of, reseed_torch
from pipeline.train.batches import Batch, Batches
from pipeline.train.checkpoint import State
from pipeline.train.meter import Meter
from pipeline.train.network import Network
from pipeline.train.schedule import lr_at
from pipeline.train.setup import Setup


class Learner(ABC):
    """What a method does in a step. The loop has a learner and calls `update` once per step.

    A subclass makes its networks and batches of the setup, in `__init__`, and says in `update`, from top to bottom:
    forward, loss, backward, clip, step, average.
    """

    metrics: tuple[str, ...] = ("loss", "grad_norm")
    """What a step measures, as metrics.jsonl names it."""
    reads_unlabeled: bool = False
    """Whether it reads the unlabeled split itself; a selection stands for the images that it selects."""
    networks: Mapping[str, Network]
    """What is trained, by its name in the checkpoints. The first is the stage's model."""
    batches: Batches
    """The batches of the steps."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.training = setup.job.training
        self.accelerator = setup.accelerator
        self.meter = Meter(setup.accelerator, self.metrics)

    @property
    def model(self) -> Network:
        """The network that becomes the stage's model."""
        return next(iter(self.networks.values()))

    @abstractmethod
    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Train on the micro-batches of one step; returns how many images this rank saw."""

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates of a step, as they are logged."""
        return {"lr": self.lr(step)}

    def extra(self) -> State:
        """State beside the networks, such as a moving average: what a checkpoint holds of it."""
        return {}

    def load_extra(self, state: State) -> None:
        """Take over what `extra` returned."""
        return None

    # ------------------------------------------------------------------------------------------ what learners share

    def lr(self, step: int) -> float:
        """The learning rate of the stage's model."""
        return lr_at(step, self.training, steps=self.training.steps, num_images=self.training.peak_images)

    def reseed(self, step: int, micro: int = 0) -> None:
        """Make what torch draws in a forward pass (dropout, stochastic depth) a function of the position."""
        job, rank = self.setup.job, self.accelerator.process_index
        reseed_torch(key_of(job.seed, "forward", job.round, step, micro, rank))

    def to_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The tensors on the device; the host does not wait for the transfer of pinned ones."""
        return [tensor.to(self.accelerator.device, non_blocking=True) for tensor in tensors]
