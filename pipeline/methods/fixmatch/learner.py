"""The step of FixMatch: the surest class on an image's weak view labels its strong view, if it is sure enough.

Shapes: L labeled images, U unlabeled ones, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import FixMatch
from pipeline.models.checkpoints import State
from pipeline.randomness import key_of
from pipeline.stages.ranks import Ranks
from pipeline.train.batches import Batch
from pipeline.train.joint import JointBatch, see
from pipeline.train.learner import Learner
from pipeline.train.losses import soft_cross_entropy
from pipeline.train.mixing import beta_draws, mix, partners
from pipeline.train.setup import Setup


class FixMatchLearner(Learner):
    """Trains one network. Labeled images and both views of unlabeled ones share one forward pass, and with it their
    BatchNorm statistics."""

    reads_unlabeled = True

    def __init__(self, setup: Setup) -> None:
        fixmatch = setup.job.settings["fixmatch"]
        assert isinstance(fixmatch, FixMatch)
        self.fixmatch = fixmatch
        of_mixup = ("mixup_loss",) if fixmatch.mixup else ()
        self.metrics = (
            *("loss", "labeled_loss", "unlabeled_loss", *of_mixup),
            *("mask_rate", "threshold", "labeled_top1", "grad_norm"),
        )
        super().__init__(setup)
        self.network = setup.network(self.training)
        self.networks = {"network": self.network}
        self.batches = setup.batches(unlabeled=True)
        self.views = setup.views()
        num_classes, device = len(setup.labeled.classes), setup.accelerator.device
        self.thresholds = Thresholds(fixmatch, num_classes, setup.ranks, device)

    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Train on the one batch of a step."""
        (batch,) = batches
        network = self.network
        self.reseed(step)
        images, labels = self.to_device(batch.images, batch.labels)
        loss, measured = self._loss(see(batch, images, labels, self.views, self.training), batch)
        self.accelerator.backward(loss)
        network.unscale()
        grad_norm = network.clip()
        if network.update(self.lr(step)):
            measured["grad_norm"] = grad_norm
        self.meter.add(step, {"loss": loss.detach(), **measured})
        return len(batch.images)

    def _loss(self, seen: JointBatch, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, supervised (Sohn 2020, eq. 3) plus on unlabeled images (eq. 4), and the measurements."""
        num_labeled, num_unlabeled = len(seen.labels), len(seen.weak)
        parts = [seen.labeled, seen.strong, seen.weak]
        if self.fixmatch.mixup is not None:
            weight, partner = self._mixup_draws(batch)
            mixed, _ = mix(seen.strong, seen.strong.new_empty(num_unlabeled, 0), weight, partner)
            parts.append(mixed)
        logits = self.network.model(torch.cat(parts)).split([num_labeled] + [num_unlabeled] * (len(parts) - 1))
        labeled, strong, weak = logits[:3]
        with torch.no_grad():
            probs = F.softmax(weak, 1)
            confidence, labels_hat = probs.max(1)
            thresholds = self.thresholds.update(probs)
            mask = (confidence >= thresholds[labels_hat]).float()
        smoothing = self.training.label_smoothing
        supervised = F.cross_entropy(
            self.network.adjusted(labeled, num_labeled), seen.labels, label_smoothing=smoothing
        )
        unlabeled = (F.cross_entropy(strong, labels_hat, reduction="none") * mask).mean()
        loss = supervised + self.fixmatch.weight * unlabeled
        measured = {
            "labeled_loss": supervised.detach(),
            "unlabeled_loss": unlabeled.detach(),
            "mask_rate": mask.mean(),
            "threshold": thresholds.mean(),
            "labeled_top1": (labeled.argmax(1) == seen.labels).float().mean(),
        }
        if self.fixmatch.mixup is not None:
            one_hot = F.one_hot(labels_hat, probs.shape[1]).float()
            targets = one_hot * weight[:, None] + one_hot[partner] * (1 - weight[:, None])
            both_sure = mask * mask[partner]
            mixup = (soft_cross_entropy(logits[3], targets) * both_sure).mean()
            loss = loss + self.fixmatch.weight * mixup
            measured["mixup_loss"] = mixup.detach()
        return loss, measured

    def _mixup_draws(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mixup weights, float32 [U], and partners, int64 [U], of the unlabeled images."""
        assert self.fixmatch.mixup is not None
        job, positions = self.setup.job, batch.positions[batch.num_labeled :]
        weight = beta_draws(key_of(job.seed, "mixing", job.round, "masked"), positions, self.fixmatch.mixup.alpha)
        partner = partners(key_of(job.seed, "mixing", job.round, "masked", "partner"), positions)
        weight_U, partner_U = self.to_device(torch.from_numpy(weight).float(), torch.from_numpy(partner))
        return weight_U, partner_U

    def extra(self) -> State:
        """The averages that adaptive thresholds are made of."""
        return {"thresholds": self.thresholds.state()}

    def load_extra(self, state: State) -> None:
        """Restore the averages."""
        self.thresholds.load(state["thresholds"])


class Thresholds:
    """One threshold per class, [C]: the config's, or FreeMatch's self-adaptive ones (Wang 2023, eq. 5 to 8)."""

    def __init__(self, fixmatch: FixMatch, num_classes: int, ranks: Ranks, device: torch.device) -> None:
        self.fixmatch, self.ranks = fixmatch, ranks
        self.confidence = torch.full((), 1 / num_classes, device=device)
        """The average of the largest probability, []: the threshold of all classes together (eq. 5)."""
        self.shares = torch.full((num_classes,), 1 / num_classes, device=device)
        """The average probability of each class, [C] (eq. 6)."""

    def update(self, probs_UC: Tensor) -> Tensor:
        """Average in the predictions [U, C] on weak views; returns the thresholds [C] from then on. No host sync."""
        if self.fixmatch.threshold != "adaptive":
            return torch.full_like(self.shares, self.fixmatch.threshold)
        found = [probs_UC.amax(1).mean(), probs_UC.mean(0)]
        self.ranks.average(found)
        step = 1 - self.fixmatch.threshold_decay
        self.confidence.lerp_(found[0], step)
        self.shares.lerp_(found[1], step)
        thresholds = self.confidence * self.shares / self.shares.max()  # eq. 7 and 8
        return thresholds.clamp(*self.fixmatch.clamp)

    def state(self) -> State:
        """The averages, as a checkpoint holds them."""
        return {"confidence": self.confidence, "shares": self.shares}

    def load(self, state: State) -> None:
        """Restore the averages of a state."""
        self.confidence.copy_(state["confidence"])
        self.shares.copy_(state["shares"])
