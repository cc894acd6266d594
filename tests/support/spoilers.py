"""What tests do to the process of a stage before it runs: for `before` of `processes.start`, which pickles them."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from pipeline.labels import stage as labels_stage
from pipeline.methods.meta import learner
from pipeline.methods.meta.step import MetaBatch
from pipeline.stages.kinds import KINDS
from pipeline.train.meter import Meter
from pipeline.train.network import Network
from support.ranks import become_rank
from support.tiny_net import register

BAD_STEP = 7
LAG_S = 0.2


def spoil_a_gradient() -> None:
    """The gradient of one step is not a number; its loss is finite."""
    clip = Network.clip

    def spoiled(self: Network) -> torch.Tensor:
        if self.ema.num_updates == BAD_STEP:
            next(self.raw_model.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]
        return clip(self)

    Network.clip = spoiled  # type: ignore[method-assign]


def skip_first_steps() -> None:
    """As fp16 does until its loss scale has come down."""
    left = [6]

    def skipped(self: AcceleratedOptimizer) -> bool:
        left[0] -= 1
        return left[0] >= 0

    AcceleratedOptimizer.step_was_skipped = property(skipped)


def lag_behind() -> None:
    """As a GPU that is still at work when the host asks what it found."""
    bad_step = Meter.bad_step

    def late(self: Meter) -> int | None:
        time.sleep(LAG_S)
        return bad_step(self)

    Meter.bad_step = late  # type: ignore[method-assign]


def be_of_the_version_before() -> None:
    """As the stages of a checkout from before the versions of all kinds were raised."""
    KINDS.update({name: replace(kind, version=kind.version - 1) for name, kind in KINDS.items()})


def watch_the_disk() -> None:
    """Fail when a checkpoint comes into place before the lines it goes on from are on the disk."""
    fsync, replace = os.fsync, os.replace
    synced: dict[str, int] = {}

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

    def watched_replace(source: Path, target: Path) -> None:
        metrics = Path(target).parent.parent / "metrics.jsonl"
        if Path(target).name.startswith("step-"):
            assert synced.get(str(metrics)) == metrics.stat().st_size
        replace(source, target)

    os.fsync, os.replace = watched_fsync, watched_replace  # type: ignore[assignment]


def limit_file_size(num_bytes: int) -> None:
    """As a full disk does, a write past this many bytes of a file fails."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def record_draws(path: Path) -> None:
    """Have the steps of Meta Pseudo Labels append their draws to a file."""
    register()
    take = learner.meta_step

    def recording(teacher: Network, student: Network, batch: MetaBatch, *rest: Any, **rates: Any) -> Any:
        with open(path, "a") as file:
            file.write(json.dumps(batch.draws.tolist()) + "\n")
        return take(teacher, student, batch, *rest, **rates)

    learner.meta_step = recording


# ---------------------------------------------------------------------------------------------------------------- ranks


def become_rank_that_is_stopped_in_step_3(rank: int, port: int) -> None:
    """A rank; the second of them gets SIGTERM in its third step."""
    become_rank(rank, port)
    backward, left = Accelerator.backward, [3]

    def stopped(self: Accelerator, loss: torch.Tensor) -> None:
        backward(self, loss)
        left[0] -= 1
        if rank == 1 and not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    Accelerator.backward = stopped


def become_rank_with_a_clock(rank: int, port: int) -> None:
    """A rank that labels, whose clock goes on by a second between two looks."""
    become_rank(rank, port)
    labels_stage.time = SimpleNamespace(monotonic=count().__next__)  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------------- labels


def die_after_2_label_files() -> None:
    """SIGKILL this process as soon as it has renamed two label files into place."""
    rename, left = os.replace, [2]

    def counted(source: str, target: str) -> None:
        rename(source, target)
        left[0] -= str(target).endswith(".arrow")
        if not left[0]:
            os.kill(os.getpid(), 9)

    os.replace = counted  # type: ignore[assignment]


def die_before_rename() -> None:
    """SIGKILL this process when a file is written but not yet in place."""
    rename = os.replace

    def deadly(source: str, target: str) -> None:
        if str(target).endswith(".arrow"):
            os.kill(os.getpid(), 9)
        rename(source, target)

    os.replace = deadly  # type: ignore[assignment]


def without_links() -> None:
    """A file system that has no links."""

    def link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    os.link = link  # type: ignore[assignment]
