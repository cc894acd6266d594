"""The training stream: the images of step s are a pure function of s.

Labeled and unlabeled images come from two endless streams. Step s takes positions [s*B, (s+1)*B) of each. They are cut
into one contiguous slot per micro-step and rank, so that N ranks together see what one process would see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import I64Array, U64Array
from pipeline.errors import UserError
from pipeline.selection.targets import Targets
from pipeline.shards.dataset import Dataset
from pipeline.shards.decode import Pixels
from pipeline.shards.order import Order
from pipeline.shards.reader import Reader
from pipeline.threads import read_ahead
from pipeline.views import ResizedCrops

UNLABELED_POSITIONS = np.uint64(1 << 62)
"""This is added to positions of the unlabeled stream, so that no two images of a step share their noise."""


@dataclass(frozen=True)
class Stream:
    """An endless stream of rows, and how many of them a step takes over all ranks and micro-steps."""

    dataset: Dataset
    reader: Reader
    order: Order
    batch_size: int
    crops: ResizedCrops | None = None
    """What cuts its images from the stored ones; None if they are read whole."""

    def rows(self, step: int, slot: int, num_slots: int) -> tuple[I64Array, U64Array]:
        """The rows int64 [n] and the stream positions uint64 [n] of one slot of a step."""
        size = self.batch_size // num_slots
        start = step * self.batch_size + slot * size
        return self.order.rows(start, start + size), np.arange(start, start + size, dtype=np.uint64)

    def read(self, rows: I64Array, positions: U64Array) -> Pixels:
        """The images of rows [n] at positions [n]: uint8 [n, S, S, 3], or [n, V, S, S, 3] with a crop per view."""
        return self.reader.read(rows) if self.crops is None else self.crops.read(self.reader, rows, positions)


@dataclass(frozen=True)
class Batch:
    """One slot on the host: labeled images first, then unlabeled ones. B images of side S, C classes."""

    images: Tensor
    """The images, uint8 [B, S, S, 3]; [B, 2, S, S, 3] where the weak and the strong view have a crop of their own."""
    positions: U64Array
    labels: Tensor
    """The labels, int64 [num_labeled]."""
    targets: Tensor
    """The pseudo-labels, float32 [B - num_labeled, C]; [B - num_labeled, 0] where images come without them."""

    @property
    def num_labeled(self) -> int:
        """The number of labeled images."""
        return len(self.labels)

    def pinned(self) -> Batch:
        """A copy in pinned memory, from which a GPU reads while the host goes on."""
        return Batch(self.images.pin_memory(), self.positions, self.labels.pin_memory(), self.targets.pin_memory())


def to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Move host tensors of any shape to the device. The host does not wait, because they go by way of pinned memory;
    before CUDA copies from any other memory, it waits until all queued work is done."""
    if device.type == "cuda":
        tensors = tuple(tensor.pin_memory() for tensor in tensors)  # pinned ones stay as they are
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


class Batches:
    """The slots of this rank. A thread reads the next one while one is used.

    Raises:
        UserError: the ranks and micro-steps cannot share a batch evenly.
    """

    def __init__(
        self,
        labeled: Stream,
        unlabeled: Stream | None,
        targets: Targets | None,
        *,
        num_classes: int,
        accumulation: int,
        rank: int,
        num_ranks: int,
        pin: bool = False,
    ) -> None:
        self.labeled, self.unlabeled, self.targets = labeled, unlabeled, targets
        self.num_classes, self.accumulation, self.rank, self.num_ranks = num_classes, accumulation, rank, num_ranks
        self.num_slots, self.pin = accumulation * num_ranks, pin
        for name, stream in (("batch_size", labeled), ("batch_size * unlabeled_ratio", unlabeled)):
            if stream is not None and stream.batch_size % self.num_slots:
                raise UserError(
                    f"`{name}` is {stream.batch_size}, which {num_ranks} processes x {accumulation} micro-steps cannot "
                    f"share evenly; use a multiple of {self.num_slots}"
                )

    def slot(self, step: int, micro: int) -> Batch:
        """The batch of one micro-step on this rank."""
        slot = micro * self.num_ranks + self.rank
        rows, positions = self.labeled.rows(step, slot, self.num_slots)
        images = self.labeled.read(rows, positions)
        labels = self.labeled.dataset.labels[rows].astype(np.int64)
        targets = np.empty((0, self.num_classes), np.float32)
        if self.unlabeled is not None:
            more_rows, more_positions = self.unlabeled.rows(step, slot, self.num_slots)
            more_positions |= UNLABELED_POSITIONS
            images = np.concatenate([images, self.unlabeled.read(more_rows, more_positions)])
            positions = np.concatenate([positions, more_positions])
            nothing = np.empty((len(more_rows), 0), np.float32)
            targets = nothing if self.targets is None else self.targets.of_rows(more_rows)
        batch = Batch(torch.from_numpy(images), positions, torch.from_numpy(labels), torch.from_numpy(targets))
        return batch.pinned() if self.pin else batch

    def from_step(self, start: int, stop: int) -> Iterator[Batch]:
        """The micro-batches of steps [start, stop); the next one is read while one is trained on."""
        slots = ((step, micro) for step in range(start, stop) for micro in range(self.accumulation))
        for _, batch in read_ahead(slots, lambda slot: self.slot(*slot)):
            yield batch

    def keys(self, step: int) -> dict[str, list[str]]:
        """Split -> the keys of all images of a step, over all ranks, for an error message."""
        streams = [s for s in (self.labeled, self.unlabeled) if s is not None]
        return {s.dataset.name: [s.dataset.key(int(row)) for row in s.rows(step, 0, 1)[0]] for s in streams}
