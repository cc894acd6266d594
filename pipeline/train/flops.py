"""The floating-point operations of a training, counted while a step of each phase is taken."""

from __future__ import annotations

from itertools import islice, pairwise

from torch.utils.flop_counter import FlopCounterMode

from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup


def flops_of(job: TrainJob, steps: int) -> int:
    """The operations of all matrix products and convolutions in this many steps, forward and backward, of all networks.

    A step of each phase is taken in this process, and its weights are thrown away. A multiplication and an addition
    count as two.
    """
    settings = [job.training] if job.teacher is None else [job.training, job.teacher]
    ends = sorted({steps, *(min(of.thaw_steps, steps) for of in settings)} - {0})
    return sum((end - start) * _flops_at(job, end - 1) for start, end in pairwise([0, *ends]))


def _flops_at(job: TrainJob, step: int) -> int:
    """The operations of one step, the last one of a phase, at which nothing else waits any more."""
    learner: Learner = load_object(job.learner)(Setup(job, Ranks(), {}))
    for network in learner.networks.values():
        network.train_mode(step)
    with FlopCounterMode(display=False) as counter:
        learner.update(step, islice(learner.batches.from_step(step, step + 1), job.training.accumulation))
    return int(counter.get_total_flops())
