"""A network in training: a model that Accelerate prepared, its optimizer and its average."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import set_trainable
from pipeline.models.format import ModelInfo
from pipeline.models.layers import lr_scales, of_classifier, rest
from pipeline.models.recompute import checkpoint_gradients
from pipeline.stages.ranks import Ranks
from pipeline.train.class_sizes import adjust
from pipeline.train.ema import Ema
from pipeline.train.optimizer import load_optimizer, make_optimizer, restart, set_lr


@dataclass
class Network:
    """A model with its optimizer and its average (EMA). Most trainings have one; Meta Pseudo Labels has two."""

    accelerator: Accelerator
    ranks: Ranks
    settings: NetworkSettings
    model: nn.Module
    """The model as Accelerate prepared it; `raw_model` is the same model without wrappers."""
    raw_model: nn.Module
    optimizer: AcceleratedOptimizer
    ema: Ema
    info: ModelInfo | None = None
    """The model.json that it is saved with; None for a network that does not classify images."""
    thawing: list[nn.Parameter] = field(default_factory=list)
    """The parameters that are frozen before step `thaw_steps`."""
    adjustment: Tensor | None = None
    """What its labeled loss adds to the logits, [C] (`logit_adjustment`); None where that is off."""

    def adjusted(self, logits: Tensor, num_labeled: int) -> Tensor:
        """The logits [..., B, C] as the loss takes them, of images of which the first `num_labeled` are labeled."""
        return adjust(logits, num_labeled, self.adjustment)

    def unscale(self) -> None:
        """Bring the gradients of fp16 to their true scale. It is called once per step, before `clip`."""
        self.accelerator.unscale_gradients(self.optimizer)

    def clip(self) -> Tensor:
        """Clip the gradient, unless that is off; returns its norm before, []. The norm takes under 1% of a step.

        The global norm is that of Pascanu (2013, section 3.2).
        """
        gradients = [p.grad for p in self.raw_model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.settings.clip_norm:
            nn.utils.clip_grads_with_norm_(self.raw_model.parameters(), self.settings.clip_norm, norm)
        return norm

    def update(self, lr: float) -> bool:
        """Step the optimizer and the average, and drop the gradients.

        Returns False if an fp16 overflow made the scaler skip the step.
        """
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average_statistics()
        if self.optimizer.step_was_skipped:
            return False
        self.ema.update()
        return True

    def average_statistics(self) -> None:
        """Average BatchNorm statistics over ranks, so that every rank evaluates and saves the same model."""
        learning = [module for module in self.raw_model.modules() if module.training]  # what is frozen stays as it is
        self.ranks.average([b for m in learning for b in m.buffers(recurse=False) if b.is_floating_point()])

    def train_mode(self, step: int | None = None) -> None:
        """Enter train mode; what is frozen stays frozen. With a step, freeze or thaw what `thaw_steps` is about.

        At the step that thaws, momentum and second moments begin anew: those of the classifier alone are older, and
        some optimizers count their steps for all parameters together.
        """
        if self.thawing and step is not None:
            for parameter in self.thawing:
                parameter.requires_grad_(step >= self.settings.thaw_steps)
            if step == self.settings.thaw_steps:
                restart(self.optimizer)
        self.model.train()
        set_trainable(self.raw_model, self.settings.frozen_layers, freeze_norm=self.settings.freeze_norm)
        if self.thawing:
            rest(self.raw_model)

    def lr_scales(self) -> list[float] | None:
        """The factors on the learning rates of the parameters that train, in the model's order; None if all are 1."""
        groups = self.optimizer.param_groups
        if not any("lr_scale" in group for group in groups):
            return None
        scale_of = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
        return [scale_of[p] for p in self.raw_model.parameters() if p.requires_grad]

    def is_finite(self) -> Tensor:
        """Whether all weights and statistics are finite, bool [] on the device; a finite loss does not imply it."""
        norms = torch._foreach_norm([t for t in self.raw_model.state_dict().values() if t.is_floating_point()])
        return torch.isfinite(torch.stack(norms)).all()

    def state(self) -> dict[str, Any]:
        """The state of this network that a checkpoint holds."""
        return {
            "model": self.raw_model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "num_updates": self.ema.num_updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.raw_model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.ema.num_updates = state["num_updates"]
        load_optimizer(self.optimizer, state["optimizer"])


def prepare(
    model: nn.Module,
    settings: NetworkSettings,
    accelerator: Accelerator,
    ranks: Ranks,
    *,
    info: ModelInfo | None = None,
    compiled: bool = False,
) -> Network:
    """Make a network of a model that is on its device and has its weights.

    Raises:
        UserError: the settings freeze all of its layers, or ask for what the architecture does not have.
    """
    ema = Ema(model, settings.ema_decay)  # copied before Accelerate patches `forward` for autocast
    scales, thawing = adapt(model, settings)  # before DDP, which would wait for the gradients of what is frozen
    if settings.gradient_checkpointing and compiled:
        raise UserError(
            "`gradient_checkpointing`: with runtime.compile, torch decides what it computes again; set one of the two "
            "to false"
        )
    optimizer = make_optimizer(model, settings.optimizer, scales)
    wrapped = torch.compile(model) if compiled else model
    prepared, prepared_optimizer = accelerator.prepare(wrapped, optimizer)
    ema.model.load_state_dict(model.state_dict())  # DDP has just given every rank the weights of rank 0
    return Network(accelerator, ranks, settings, prepared, model, prepared_optimizer, ema, info, thawing)


def adapt(model: nn.Module, settings: NetworkSettings) -> tuple[dict[str, float], list[nn.Parameter]]:
    """Freeze what the settings freeze for the whole training, and let the model compute activations again if they ask
    for that. A dry run needs no values for it.

    Returns:
        The factors on the learning rates by parameter, empty if there are none, and the parameters that are frozen
        before `thaw_steps`.

    Raises:
        UserError: the settings freeze all of its layers, or ask for what the architecture does not have.
    """
    set_trainable(model, settings.frozen_layers, freeze_norm=settings.freeze_norm)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            f"`frozen_layers`: {settings.frozen_layers} freezes all of {settings.model}, which leaves nothing to "
            "train; set it lower"
        )
    if settings.gradient_checkpointing:
        checkpoint_gradients(model)
    thawing: list[nn.Parameter] = []
    if settings.thaw_steps:
        head = of_classifier(model, "thaw_steps", "0")
        thawing = [p for name, p in model.named_parameters() if p.requires_grad and name not in head]
    return lr_scales(model, settings.layer_decay, settings.head_lr), thawing
