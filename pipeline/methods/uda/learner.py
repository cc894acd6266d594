"""The step of UDA: a supervised loss, and consistency between two views of each unlabeled image (Xie 2019).

Shapes: L labeled images, U unlabeled ones, C classes. Leading dimensions "..." are independent networks side by side,
whose losses add up. Only the two moons have such a dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Uda
from pipeline.train.batches import Batch
from pipeline.train.joint import JointBatch, see
from pipeline.train.learner import Learner
from pipeline.train.losses import mean_cross_entropy
from pipeline.train.network import Network
from pipeline.train.setup import Setup

METRICS = ("labeled_loss", "uda_loss", "mask_rate", "labeled_top1")


class UdaLearner(Learner):
    """Trains one network. Its draws equal those of Meta Pseudo Labels' teacher, which it is without feedback."""

    metrics = ("loss", *METRICS, "grad_norm")
    reads_unlabeled = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        uda = setup.job.settings["uda"]
        assert isinstance(uda, Uda)
        self.uda = uda
        self.network = setup.network(self.training, "teacher")
        self.networks = {"network": self.network}
        self.batches = setup.batches(unlabeled=True)
        self.views = setup.views()

    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Train on the one batch of a step."""
        (batch,) = batches
        network = self.network
        self.reseed(step)
        images, labels = self.to_device(batch.images, batch.labels)
        joint = see(batch, images, labels, self.views, self.training)
        answer = answer_batch(network, joint, self.uda, uda_weight_at(step, self.uda))
        self.accelerator.backward(answer.loss)
        network.unscale()
        grad_norm = network.clip()
        measured = {"loss": answer.loss.detach(), **answer.measured}
        if network.update(self.lr(step)):
            measured["grad_norm"] = grad_norm
        self.meter.add(step, measured)
        return len(batch.images)


@dataclass(frozen=True)
class Answer:
    """A network's answer to a batch. The graph behind `logits` and `loss` is kept until a backward pass."""

    logits: Tensor
    """The logits of the strong views, float32 [..., U, C]."""
    loss: Tensor
    """The sum of the supervised and the consistency loss, []."""
    uda_gradient: Tensor
    """The norm of the consistency loss's gradient in an image's logits, as a mean over images, []."""
    measured: dict[str, Tensor]


def answer_batch(network: Network, batch: JointBatch, uda: Uda, uda_weight: float) -> Answer:
    """The supervised and the consistency loss (Xie 2019, eq. 1), and the logits of the strong views."""
    num_labeled, num_unlabeled = len(batch.labels), len(batch.strong)
    if uda.joint_batch:
        logits = network.model(torch.cat([batch.labeled, batch.strong, batch.weak]))
        labeled, strong, weak = logits.split([num_labeled, num_unlabeled, num_unlabeled], dim=-2)
        weak = weak.detach()
    else:  # the weak views are targets, which need no graph
        with torch.no_grad():
            weak = network.model(batch.weak)
        logits = network.model(torch.cat([batch.labeled, batch.strong]))
        labeled, strong = logits.split([num_labeled, num_unlabeled], dim=-2)
    adjusted = network.adjusted(labeled, num_labeled)
    supervised = mean_cross_entropy(adjusted, batch.labels, network.settings.label_smoothing)
    targets, mask = uda_targets(weak, uda.temperature, uda.threshold)
    consistency = (mask * -(targets * F.log_softmax(strong, -1)).sum(-1)).mean(-1)
    with torch.no_grad():
        gradients = uda_weight * mask * (F.softmax(strong, -1) - targets).norm(dim=-1)
        top1 = (labeled.argmax(-1) == batch.labels).float().mean()
    measured = {"labeled_loss": supervised, "uda_loss": consistency, "mask_rate": mask.mean(), "labeled_top1": top1}
    measured = {name: value.detach().mean() for name, value in measured.items()}
    loss = (uda.labeled_weight * supervised + uda_weight * consistency).sum()
    return Answer(strong, loss, gradients.mean(), measured)


def uda_targets(weak_logits: Tensor, temperature: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Logits [..., U, C] -> sharpened predictions [..., U, C], and a mask [..., U] of those that are sure enough."""
    targets = F.softmax(weak_logits / temperature, -1)
    return targets, (targets.amax(-1) >= threshold).to(targets.dtype)


def uda_weight_at(step: int, uda: Uda) -> float:
    """The weight of the consistency loss at a step; it rises linearly from 0 over `uda.ramp_steps`."""
    return uda.weight * (min(step / uda.ramp_steps, 1.0) if uda.ramp_steps else 1.0)
