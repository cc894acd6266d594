"""The floating-point operations of a training step, counted while the step is taken."""

from __future__ import annotations

from itertools import islice

from torch.utils.flop_counter import FlopCounterMode

from pipeline.stages.jobs import TrainJob
from pipeline.stages.kinds import load_object
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner
from pipeline.train.setup import Setup


def flops_per_step(job: TrainJob) -> int:
    """The operations of all matrix products and convolutions in one step, forward and backward, of all networks.

    The step is taken in this process, and its weights are thrown away. A multiplication and an addition count as two.
    """
    learner: Learner = load_object(job.learner)(Setup(job, Ranks(), {}))
    for network in learner.networks.values():
        network.train_mode()
    step = job.training.steps - 1  # the last step, at which nothing waits any more
    with FlopCounterMode(display=False) as counter:
        learner.update(step, islice(learner.batches.from_step(step, step + 1), job.training.accumulation))
    return int(counter.get_total_flops())
