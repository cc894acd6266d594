"""A network in training: a model that Accelerate prepared, its optimizer and its average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.errors import UserError
from pipeline.models import set_trainable
from pipeline.models.format import ModelInfo
from pipeline.stages.ranks import Ranks
from pipeline.train.class_sizes import adjust
from pipeline.train.ema import Ema
from pipeline.train.optimizer import load_optimizer, make_optimizer, set_lr


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
        self.ranks.average([b for b in self.raw_model.buffers() if b.is_floating_point()])

    def train_mode(self) -> None:
        """Enter train mode; frozen layers stay frozen."""
        self.model.train()
        set_trainable(self.raw_model, self.settings.frozen_layers)

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
        UserError: the settings freeze all of its layers.
    """
    ema = Ema(model, settings.ema_decay)  # copied before Accelerate patches `forward` for autocast
    set_trainable(model, settings.frozen_layers)  # before DDP, which would wait for their gradients
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            f"`frozen_layers`: {settings.frozen_layers} freezes all of {settings.model}, which leaves nothing to "
            "train; set it lower"
        )
    optimizer = make_optimizer(model, settings.optimizer)
    wrapped = torch.compile(model) if compiled else model
    prepared, prepared_optimizer = accelerator.prepare(wrapped, optimizer)
    ema.model.load_state_dict(model.state_dict())  # DDP has just given every rank the weights of rank 0
    return Network(accelerator, ranks, settings, prepared, model, prepared_optimizer, ema, info)
