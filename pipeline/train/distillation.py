"""Knowledge distillation: what a trained teacher answers to the views that its student sees, or has answered before.

Shapes: B images, U of them unlabeled, C classes, S their side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Distillation
from pipeline.config.evaluate import Patches
from pipeline.errors import UserError, did_you_mean
from pipeline.evaluate.predictor import open_predictor
from pipeline.models.forward import predict_logits
from pipeline.models.preprocessing import Normalization, normalization_of
from pipeline.train.losses import distillation_loss, smooth_one_hot
from pipeline.train.setup import Setup


class Distiller:
    """Adds the distillation loss to the losses of a batch (Hinton 2015, section 2; Bag of Tricks 5.3).

    Args:
        settings: The settings of the technique.
        setup: That of the training.

    Raises:
        UserError: no teacher is named, it does not know a class, or there are no label files.
    """

    def __init__(self, settings: Distillation, setup: Setup) -> None:
        self.settings, self.training = settings, setup.job.training
        self.teacher: Teacher | None = None
        if settings.source == "model":
            self.teacher = Teacher(settings.model, setup)
        elif setup.job.selection is None:
            raise UserError(
                "`distillation.source` is labels, but this training has no selection of pseudo-labels; set it to model"
            )

    def __call__(self, losses: Tensor, logits: Tensor, views: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [B] with the distillation loss in them, and its mean [].

        Args:
            losses: The losses on labels, then on pseudo-labels, [B].
            logits: The student's logits, [B, C].
            views: What it saw, normalized, float32 [B, 3, S, S].
            stored: What batches hold of the unlabeled images, [U, C]: with `source: labels`, the probabilities in the
                label files.
        """
        found = self.settings
        teacher = self.teacher.logits(views) if self.teacher is not None else as_logits(stored)
        first = len(losses) - len(teacher)  # label files are of unlabeled images, which come last
        soft = distillation_loss(logits[first:], teacher, found.temperature)
        mixed = found.hard_weight * losses[first:] + found.weight * soft
        return torch.cat([losses[:first], mixed]), soft.detach().mean()

    def targets(self, stored: Tensor) -> Tensor:
        """The targets [U, C] of the loss on pseudo-labels, of what batches hold.

        That are these targets, or with `source: labels` the probabilities in the label files.
        """
        if self.teacher is not None:
            return stored
        training, num_classes = self.training, stored.shape[1]
        if training.targets == "hard":
            return smooth_one_hot(stored.argmax(1), num_classes, training.label_smoothing)
        cold = training.target_temperature
        return stored if cold == 1 else F.softmax(as_logits(stored) / cold, dim=1)


class Teacher:
    """The trained model that a student learns from: averaged weights in eval mode, without gradients."""

    def __init__(self, source: str | None, setup: Setup) -> None:
        if source is None:
            raise UserError(
                "`distillation.model` names no model; name a trained one (in the rounds of `selftrain run` it is the "
                "round's teacher)"
            )
        self.predictor = open_predictor(Path(source), Patches(), setup.job.runtime)
        self.predictor.model.requires_grad_(False)
        info = self.predictor.info
        classes = setup.labeled.classes
        if unknown := [name for name in classes if name not in info.classes]:
            raise UserError(
                f"`distillation.model`: {source} does not know class {unknown[0]!r} of the data, "
                f"{did_you_mean(unknown[0], info.classes)}; choose a model that knows all of them"
            )
        self.size = info.input_size[-1]
        device = setup.accelerator.device
        self.classes = torch.tensor([info.classes.index(name) for name in classes], device=device)
        theirs = normalization_of(self.predictor.model, info.mean, info.std)
        self.normalization = _from_one_to_other(setup.normalization, theirs, source, device)

    @torch.no_grad()
    def logits(self, views: Tensor) -> Tensor:
        """What it answers to views [B, 3, S, S] as the student sees them, float32 [B, C], in the order of the data.

        It sees them normalized as it was trained, at its own size.
        """
        if self.normalization is not None:
            scale, shift = self.normalization
            views = views * scale + shift
        if views.shape[-1] != self.size:
            views = F.interpolate(views, (self.size, self.size), mode="bilinear", antialias=True)
        predictor = self.predictor
        with predictor.folded:
            return predict_logits(predictor.model, views, predictor.dtype).float()[:, self.classes]


def as_logits(probabilities: Tensor) -> Tensor:
    """Logits whose softmax is probabilities [U, C]; none is minus infinity."""
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def _from_one_to_other(
    ours: Normalization, theirs: Normalization, source: str, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """The factor and the summand, [3, 1, 1] each, from a training's normalization to another; None if they are one.

    Raises:
        UserError: one of them is by arrays, which belong to the places of a whole image and not of a view.
    """
    if isinstance(ours.mean, Tensor) or isinstance(theirs.mean, Tensor):
        raise UserError(
            f"`distillation.model`: {source} and the student do not both see images less numbers per channel, so the "
            "one's input cannot be made of the other's; set distillation.source: labels, or preprocessing: mean_std"
        )
    if (list(ours.mean), list(ours.std)) == (list(theirs.mean), list(theirs.std)):
        return None
    our_mean, our_std, their_mean, their_std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    scale, shift = our_std / their_std, (our_mean - their_mean) / their_std
    return scale.float().to(device), shift.float().to(device)
