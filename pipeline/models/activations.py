"""The nonlinearity between the layers of a network, in place of the architecture's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from torch import nn

from pipeline.config import ActivationName
from pipeline.errors import UserError

ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "sigmoid": lambda inplace: nn.Sigmoid(),
    "tanh": lambda inplace: nn.Tanh(),
    "relu": lambda inplace: nn.ReLU(inplace),  # Krizhevsky 2012, 3.1
    "leaky_relu": lambda inplace: nn.LeakyReLU(inplace=inplace),  # Maas 2013: slope 0.01
    "prelu": lambda inplace: nn.PReLU(),  # He 2015, 2.1, shared by the channels of a layer; begins at 0.25
    "elu": lambda inplace: nn.ELU(inplace=inplace),  # Clevert 2016, eq. 15: alpha 1
    "selu": lambda inplace: nn.SELU(inplace),  # Klambauer 2017, eq. 2
    "gelu": lambda inplace: nn.GELU(),  # Hendrycks 2016, 2, exact
    "silu": lambda inplace: nn.SiLU(inplace),  # Elfwing 2018, eq. 5 (swish)
}
"""Name -> the module, made in place or not."""
assert set(ACTIVATIONS) == set(get_args(ActivationName))

_REPLACED = {
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU", "ELU", "CELU", "SELU", "GELU", "GELUTanh", "QuickGELU"),
    *("SiLU", "Swish", "SwishMe", "Mish", "MishMe", "Hardswish", "HardSwish", "HardSwishMe", "HardMish", "HardMishMe"),
    *("Tanh", "Softplus", "Hardtanh"),
}
"""The activations between layers, of torch and of timm, by the names of their classes. Sigmoids are not among them:
where they stand in an architecture they are gates, such as those of squeeze-and-excitation."""
FUNCTIONS = frozenset(
    {"relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish"}
)
"""Functions that do the same without a module, so that nothing can replace them."""


def is_activation(module: nn.Module) -> bool:
    """Whether a module is the nonlinearity between two layers, and no gate."""
    return type(module).__name__ in _REPLACED


def with_activation(model: nn.Module, name: str) -> list[nn.Module]:
    """Put another activation in the place of each one of a network; returns the new ones.

    All else stays, so the weights have the same names. `prelu` adds one slope per activation. A module that several
    places share is replaced in all of them by one.

    Raises:
        UserError: there is no such activation, or the network has none to replace.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"`activation`: {name!r} is none; choose one of {', '.join(ACTIVATIONS)}")
    new: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for attribute, module in parent.named_children():
            if is_activation(module):
                if module not in new:
                    new[module] = ACTIVATIONS[name](bool(getattr(module, "inplace", False)))
                setattr(parent, attribute, new[module])
    if not new:
        raise UserError(
            f"`activation`: {type(model).__name__} has no module of an activation to replace; set it to null, or "
            "choose another model"
        )
    return list(new.values())
