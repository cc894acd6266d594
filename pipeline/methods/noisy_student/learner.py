"""The step of teacher and student alike: it trains one network on labeled and pseudo-labeled images."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from pipeline.selection.targets import Targets, open_selection
from pipeline.train.batches import Batch, Batches
from pipeline.train.distillation import Distiller
from pipeline.train.learner import Learner
from pipeline.train.losses import combine, hard_cross_entropy, num_correct, smooth_one_hot, soft_cross_entropy
from pipeline.train.mixing import Mixing
from pipeline.train.setup import Setup


class PseudoLabelLearner(Learner):
    """Trains one network on labeled images and, with a selection, on pseudo-labeled ones (Noisy Student, section 2).

    Without a selection the training is supervised: that of a teacher, a control or a fine-tune.
    """

    metrics: tuple[str, ...] = (
        "loss",
        "labeled_loss",
        "unlabeled_loss",
        "labeled_top1",
        "unlabeled_agreement",
        "grad_norm",
    )

    def __init__(self, setup: Setup) -> None:
        distillation = setup.job.training.distillation
        if distillation is not None:
            self.metrics = (*self.metrics, "distillation_loss")
        super().__init__(setup)
        self.distiller = None if distillation is None else Distiller(distillation, setup)
        self.network = setup.network(self.training)
        self.networks = {"network": self.network}
        self.batches = _batches(setup)
        self.views = setup.views()
        self.mixing = _mixing(setup)

    def update(self, step: int, batches: Iterable[Batch]) -> int:
        """Accumulate the gradients of all micro-batches, then update once."""
        network, accumulation, num_images = self.network, self.training.accumulation, 0
        for micro, batch in enumerate(batches):
            self.reseed(step, micro)
            is_last = micro == accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(network.model):
                loss, measured = self._loss(batch)
                self.accelerator.backward(loss / accumulation)
            self.meter.add(step, measured)
            num_images += len(batch.images)
        network.unscale()
        grad_norm = network.clip()
        if network.update(self.lr(step)):
            self.meter.add(step, {"grad_norm": grad_norm})
        return num_images

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [] of one micro-batch, and its measurements."""
        training, num_labeled = self.training, batch.num_labeled
        images, labels, stored = self.to_device(batch.images, batch.labels, batch.targets)
        targets = stored if self.distiller is None else self.distiller.targets(stored)
        if training.noise_labeled:
            views = self.views.strong(images, batch.positions)
        else:
            weak = self.views.weak(images[:num_labeled], batch.positions[:num_labeled])
            strong = self.views.strong(images[num_labeled:], batch.positions[num_labeled:])
            views = torch.cat([weak, strong])
        if self.mixing is not None:
            all_targets = torch.cat([smooth_one_hot(labels, targets.shape[1], training.label_smoothing), targets])
            views, mixed = self.mixing(views, all_targets, batch.positions)
        logits = self.network.model(views)  # one pass: BatchNorm sees both kinds (Noisy Student's code)
        seen = self.network.adjusted(logits, num_labeled)
        if self.mixing is not None:
            losses = soft_cross_entropy(seen, mixed)
            labeled, unlabeled = losses[:num_labeled], losses[num_labeled:]
        else:
            labeled = hard_cross_entropy(seen[:num_labeled], labels, training.label_smoothing)
            unlabeled = soft_cross_entropy(seen[num_labeled:], targets)
        learned, measured = (labeled, unlabeled), dict[str, Tensor]()
        if self.distiller is not None:
            losses, measured["distillation_loss"] = self.distiller(torch.cat(learned), logits, views, stored)
            learned = (losses[:num_labeled], losses[num_labeled:])
        loss = combine(*learned, training.loss_normalization, num_labeled=num_labeled, num_total=len(batch.images))
        with torch.no_grad():
            num_unlabeled = max(len(batch.targets), 1)
            measured |= {
                "loss": loss.detach(),
                "labeled_loss": labeled.mean(),
                "unlabeled_loss": unlabeled.sum() / num_unlabeled,
                "labeled_top1": num_correct(logits[:num_labeled], labels) / num_labeled,
                "unlabeled_agreement": num_correct(logits[num_labeled:], targets.argmax(1)) / num_unlabeled,
            }
        return loss, measured


def _mixing(setup: Setup) -> Mixing | None:
    training = setup.job.training
    if training.mixup is None and training.cutmix is None:
        return None
    return Mixing(training.mixup, training.cutmix, seed=setup.job.seed, round=setup.job.round)


def _batches(setup: Setup) -> Batches:
    job, training = setup.job, setup.job.training
    if job.selection is None:
        return setup.batches()
    selection, store = open_selection(job.selection, setup.unlabeled)
    copies = np.zeros(len(setup.unlabeled), selection.copies.dtype)
    copies[selection.rows] = selection.copies
    if training.distillation is not None and training.distillation.source == "labels":
        targets = Targets(store, "soft")  # the learner makes both targets of them
    else:
        targets = Targets(
            store, training.targets, temperature=training.target_temperature, smoothing=training.label_smoothing
        )
    return setup.batches(unlabeled=True, copies=copies, targets=targets)
