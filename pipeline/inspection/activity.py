"""Statistics of activations and of their gradients, layer by layer, in one pass over a batch (CS231n, lecture on
training neural networks; Glorot 2010, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.arrays import F32Array
from pipeline.errors import UserError
from pipeline.models.activations import is_activation

MAX_VALUES = 20_000
"""Values of a layer that are kept for its histogram."""
_SATURATED: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda y: y.abs() > 0.99,
    nn.Sigmoid: lambda y: (y - 0.5).abs() > 0.49,
}
"""The activations that saturate, and where their slope is below a fiftieth of the steepest one."""


@dataclass(frozen=True)
class LayerStatistics:
    """What one activation gives for a batch of images."""

    name: str
    mean: float
    std: float
    zeros: float
    """Share of values that are exactly 0."""
    saturated: float
    """Share of values at which the slope is nearly 0 because the activation saturates; 0 for those that do not."""
    gradient: float
    """Root mean square of the gradient of the batch's mean loss with respect to the values, times the images."""
    values: F32Array
    """All values, or as many drawn from them, the same ones in each call, [n]."""

    def to_json(self) -> dict[str, Any]:
        """The figures, without the values."""
        names = ("name", "mean", "std", "zeros", "saturated", "gradient")
        return {name: getattr(self, name) for name in names}


def layer_statistics(model: nn.Module, images: Tensor, labels: Tensor, activation: str | None) -> list[LayerStatistics]:
    """The statistics of each activation of a model, in the order in which images [B, 3, S, S] pass them.

    The model is in train mode, so BatchNorm has the statistics of the batch, as in a step. An activation that is called
    several times counts once per call. `activation` is the key of the config: with `sigmoid`, which is a gate
    elsewhere, sigmoids are activations.

    Raises:
        UserError: the model has no module of an activation.
    """
    found: list[tuple[str, nn.Module, Tensor]] = []
    gradients: dict[int, Tensor] = {}

    def see(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            number = len(found)
            output.register_hook(lambda gradient: gradients.__setitem__(number, gradient.detach()))
            found.append((name, module, output.detach().clone()))  # what follows may overwrite it

        return hook

    watched = {
        name: module
        for name, module in model.named_modules()
        if is_activation(module) or (activation == "sigmoid" and isinstance(module, nn.Sigmoid))
    }
    if not watched:
        raise UserError(f"`model`: {type(model).__name__} has no module of an activation to inspect; choose another")
    handles = [module.register_forward_hook(see(name)) for name, module in watched.items()]
    try:
        F.cross_entropy(model.train()(images), labels).backward()
    finally:
        for handle in handles:
            handle.remove()
    return [_of(name, module, y, gradients.get(i)) for i, (name, module, y) in enumerate(found)]


def _of(name: str, module: nn.Module, y: Tensor, gradient: Tensor | None) -> LayerStatistics:
    y = y.float()
    saturated = next((is_flat(y) for kind, is_flat in _SATURATED.items() if isinstance(module, kind)), None)
    flat = y.flatten()
    if len(flat) > MAX_VALUES:  # drawn at random: every n-th value might be of some units or columns only
        flat = flat[torch.randint(len(flat), (MAX_VALUES,), generator=torch.Generator().manual_seed(0)).to(flat.device)]
    return LayerStatistics(
        name=name,
        mean=float(y.mean()),
        std=float(y.std(correction=0)),
        zeros=float((y == 0).float().mean()),
        saturated=0.0 if saturated is None else float(saturated.float().mean()),
        gradient=0.0 if gradient is None else float(gradient.float().square().mean().sqrt()) * len(y),
        values=flat.cpu().numpy(),
    )
