"""The contract between the loop and a method: a learner turns the batches of a step into an update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch

from pipeline.models.checkpoints import State
from pipeline.randomness import key_of, reseed_torch
from pipeline.train.batches import Batch, Batches, to_device
from pipeline.train.meter import Meter
from pipeline.train.network import Network
from pipeline.train.schedule import lr_at
from pipeline.train.setup import Setup


class Learner(ABC):
    """The steps of a method. The loop has a learner and calls its `update` once per step.

    A subclass makes its networks and batches from the setup in `__init__`. Its `update` reads from top to bottom:
    forward, loss, backward, clip, step, average.
    """

    metrics: tuple[str, ...] = ("loss", "grad_norm")
    """The names of what a step measures, which are columns of metrics.jsonl."""
    reads_unlabeled: bool = False
    """Whether it reads the unlabeled split itself. A selection stands for the images that it selects."""
    networks: Mapping[str, Network]
    """Name in the checkpoints -> network. The first one becomes the stage's model."""
    batches: Batches
    """The batches of the steps."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.training = setup.job.training
        self.accelerator = setup.accelerator
        self.meter = Meter(setup.accelerator, self.metrics)
        self.falls: list[int] = []
        """The steps from which on a plateau of val has lowered the learning rate. The loop adds and saves them."""

    @property
    def model(self) -> Network:
        """The network that becomes the stage's model."""
        return next(iter(self.networks.values()))

    @property
    def waits(self) -> int:
        """The steps before the stage's model learns as a whole, in which an early stop would be too early."""
        return self.training.thaw_steps

    @property
    def rises(self) -> int:
        """The steps before the learning rate of the stage's model is at its peak, which no plateau lowers yet."""
        return max(self.waits, self.training.warmup_steps)

    @abstractmethod
    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Train on the micro-batches of one step; returns the number of images that this rank saw."""

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates of a step, by their columns in metrics.jsonl."""
        return {"lr": self.lr(step)}

    def extra(self) -> State:
        """The state beside the networks that a checkpoint holds, such as a moving average."""
        return {}

    def load_extra(self, state: State) -> None:
        """Restore the state that `extra` returned."""
        return None

    # ------------------------------------------------------------------------------------------ what learners share

    def lr(self, step: int) -> float:
        """The learning rate of the stage's model at a step."""
        training = self.training
        return lr_at(step, training, steps=training.steps, num_images=training.peak_images, falls=self.falls)

    def reseed(self, step: int, micro: int = 0) -> None:
        """Make torch's draws in a forward pass (dropout, stochastic depth) a function of step, micro-step and rank."""
        job, rank = self.setup.job, self.accelerator.process_index
        reseed_torch(key_of(job.seed, "forward", job.round, step, micro, rank))

    def to_device(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """The tensors on the device; the host does not wait for their transfer."""
        return to_device(self.accelerator.device, *tensors)
