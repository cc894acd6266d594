"""The training of teacher and student alike: one network, labeled and pseudo-labeled images."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.randomness import key_of, reseed_torch
from pipeline.train.batches import Batch
from pipeline.train.loop import Loop
from pipeline.train.losses import combine, hard_cross_entropy, num_correct, soft_cross_entropy
from pipeline.train.network import Network
from pipeline.train.schedule import lr_at

METRICS = ("loss", "labeled_loss", "unlabeled_loss", "labeled_top1", "unlabeled_agreement", "grad_norm")


@dataclass
class Trainer(Loop):
    """The training of one network on labeled and pseudo-labeled images (Noisy Student, section 2)."""

    network: Network

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a step measures. Of a teacher without pseudo-labels some are 0."""
        return METRICS

    @property
    def networks(self) -> dict[str, Network]:
        """The one network."""
        return {"network": self.network}

    def take_step(self, step: int, batches: Iterable[Batch]) -> int:
        """Gradients of every micro-batch, then one update."""
        network, accumulation, num_images = self.network, self.training.accumulation, 0
        for micro, batch in enumerate(batches):
            reseed_torch(key_of(self.seed, "forward", self.round, step, micro, self.accelerator.process_index))
            is_last = micro == accumulation - 1
            with nullcontext() if is_last else self.accelerator.no_sync(network.model):
                loss, measured = self._loss(batch)
                self.accelerator.backward(loss / accumulation)
            self.meter.add(step, measured)
            num_images += len(batch.images)
        network.unscale()
        grad_norm = network.clip()
        if network.update(lr_at(step, self.training)):
            self.meter.add(step, {"grad_norm": grad_norm})
        return num_images

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and what it measured."""
        device, training, num_labeled = self.accelerator.device, self.training, batch.num_labeled
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        targets = batch.targets.to(device, non_blocking=True)
        if training.noise_labeled:
            views = self.views.strong(images, batch.positions)
        else:
            weak = self.views.weak(images[:num_labeled], batch.positions[:num_labeled])
            strong = self.views.strong(images[num_labeled:], batch.positions[num_labeled:])
            views = torch.cat([weak, strong])
        logits = self.network.model(views)  # one forward: BatchNorm sees the mixed batch (Noisy Student's code)
        labeled = hard_cross_entropy(logits[:num_labeled], labels, training.label_smoothing)
        unlabeled = soft_cross_entropy(logits[num_labeled:], targets)
        loss = combine(
            labeled, unlabeled, training.loss_normalization, num_labeled=num_labeled, num_total=len(batch.images)
        )
        with torch.no_grad():
            num_unlabeled = max(len(batch.targets), 1)
            measured = {
                "loss": loss.detach(),
                "labeled_loss": labeled.mean(),
                "unlabeled_loss": unlabeled.sum() / num_unlabeled,
                "labeled_top1": num_correct(logits[:num_labeled], labels) / num_labeled,
                "unlabeled_agreement": num_correct(logits[num_labeled:], targets.argmax(1)) / num_unlabeled,
            }
        return loss, measured
