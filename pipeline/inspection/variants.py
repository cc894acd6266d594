"""Trains variants of a config for some steps, in this process, and looks at their layers in between."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, changed
from pipeline.config.unread import reads
from pipeline.errors import UserError
from pipeline.inspection.activity import LayerStatistics, layer_statistics
from pipeline.models import build
from pipeline.models.preprocessing import without_arrays
from pipeline.runs.dry_run import check_training
from pipeline.shards.dataset import open_split
from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup

_INSPECTED = ("teacher", "data", "seed", "runtime")
"""The sections that make the teacher of a config."""
_NEXT_KEY = re.compile(r",(?=[A-Za-z_][\w.]*=)")


@dataclass(frozen=True)
class Snapshot:
    """The layers of one variant after some steps."""

    variant: str
    step: int
    layers: tuple[LayerStatistics, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, without the values."""
        return {"variant": self.variant, "step": self.step, "layers": [layer.to_json() for layer in self.layers]}


def parse_variant(text: str) -> list[str]:
    """`a.b=1,c={x: 1, y: 2}` -> the overrides of one variant, which commas part before the next `key=`.

    Raises:
        UserError: a part is no override.
    """
    parts = _NEXT_KEY.split(text)
    for part in parts:
        if "=" not in part:
            raise UserError(f"--variant {text}: {part!r} is not KEY=VALUE; write for example teacher.activation=tanh")
        if part.partition(".")[0].partition("=")[0] not in _INSPECTED:
            raise UserError(
                f"--variant {text}: {part!r} changes nothing that is inspected; set keys of {', '.join(_INSPECTED)}"
            )
    return parts


def inspect_variants(
    configs: dict[str, Config], steps: Sequence[int], num_images: int, on_step: Callable[[str, int], None]
) -> Iterator[Snapshot]:
    """Yield the layers of the teacher of each config at each of the steps, in their order.

    A variant is trained as its config says, up to the last of the steps, and nothing of it is kept. The images are the
    same for all: labeled ones from all over the data set, without noise.

    Raises:
        UserError: the method does not train the teacher by itself, its network does not fit the data, there is no
            labeled split, or a step is beyond the training.
    """
    for name, config in configs.items():
        if not reads(config, "teacher.steps"):
            raise UserError(
                f"method {config.method} trains no teacher by itself, and that is what is inspected; pass --set "
                "method=noisy_student, with the network in the section teacher"
            )
        training = config.teacher
        if max(steps) > training.steps:
            raise UserError(f"--steps {max(steps)} is beyond teacher.steps ({training.steps}); raise that")
        if training.probe is not None or (training.start is not None and training.start.mode == "use"):
            raise UserError("teacher.probe or start.mode use trains no network to inspect; set it to null")
        check_training("teacher", training, len(open_split(config.data, "labeled").classes), 1)
        job = TrainJob.of(config, Path(os.devnull), "teacher", 0, training)  # where no progress is written
        yield from _inspect(name, job, sorted(set(steps)), num_images, on_step)


def _inspect(
    name: str, job: TrainJob, steps: Sequence[int], num_images: int, on_step: Callable[[str, int], None]
) -> Iterator[Snapshot]:
    job = changed(job, runtime=changed(job.runtime, compile=False))
    setup = Setup(job, Ranks(), {})
    learner: Learner = load_object(job.learner)(setup)
    network = learner.model
    assert network.info is not None
    images, labels = setup.first_images()
    some = torch.linspace(0, len(images) - 1, min(num_images, len(images))).long()
    images, labels = images[some], labels[some]
    batches = learner.batches.from_step(0, max(steps)) if max(steps) else iter(())
    network.train_mode(0)
    for step in range(max(steps) + 1):
        if step in steps:
            copy = build(network.info.architecture, len(network.info.classes), model_args=network.info.model_args)
            copy.load_state_dict(without_arrays(network.raw_model.state_dict()))  # the images are preprocessed already
            copy.to(images.device)
            yield Snapshot(name, step, tuple(layer_statistics(copy, images, labels, job.training.activation)))
        if step < max(steps):
            learner.update(step, islice(batches, job.training.accumulation))
            on_step(name, step + 1)
