"""What a starting config is made for: the images, the machine, the method, and the minutes that it may take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import U8Array
from pipeline.config import Data, Runtime, Split
from pipeline.config.methods import METHOD_CONFIGS, MethodConfig
from pipeline.config.unread import is_read
from pipeline.shards.dataset import Dataset
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import Reader


@dataclass(frozen=True)
class Given:
    """What is known before a recipe is chosen."""

    manifest: Manifest
    counts: dict[Split, int]
    labeled: Dataset
    machine: Runtime
    """What `auto` is on this machine."""
    processes: int
    """Training processes, one per GPU."""
    method: str
    minutes: float | None
    """How long a run may take; None to size it to the images."""

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.machine.device == "cpu"

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.manifest.classes)

    @property
    def asks(self) -> MethodConfig:
        """What the method requires of the config."""
        return METHOD_CONFIGS[self.method]

    @property
    def has_rounds(self) -> bool:
        """Whether the method trains a teacher by itself, which labels images for a student."""
        return is_read(self.method, "select")

    def batch_size(self, most: int) -> int:
        """The labeled images of a step, which the processes share."""
        return -(-min(most, self.counts["labeled"]) // self.processes) * self.processes

    def some_images(self, size: int, most: int) -> U8Array:
        """Some labeled images, uint8 [n, size, size, 3]."""
        rows = np.unique(np.linspace(0, len(self.labeled) - 1, most).astype(np.int64))
        return Reader(self.labeled, size, Data(cache="never")).read(rows)


@dataclass(frozen=True)
class Lengths:
    """The numbers of steps, and how long they take here."""

    batch_size: int
    teacher_steps: int
    student_steps: int
    num_rounds: int
    seconds: float
    speed: float
    """Training images per second, as measured."""
