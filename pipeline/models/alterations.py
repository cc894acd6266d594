"""What a config changes in the function that an architecture computes: its activation, its pooling.

They travel among `model_args`, so whatever builds a network again from its model.json builds the same one, and
`timm.create_model`, which knows no such argument, refuses it instead of building another function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.config import Scalar
from pipeline.errors import UserError
from pipeline.models import activations, pooling


class Alteration(NamedTuple):
    """A change of the function that an architecture computes."""

    put: Callable[[nn.Module, Any], list[nn.Module]]
    """Changes a model in place, and returns the modules that it put there."""
    escapes: frozenset[str]
    """The functions that do, without a module, what it would have replaced."""


ALTERATIONS: Mapping[str, Alteration] = {
    "activation": Alteration(activations.with_activation, activations.FUNCTIONS),
    "fractional_pooling": Alteration(pooling.with_fractional_pooling, pooling.FUNCTIONS),
}
"""Argument -> alteration."""


def split_args(model_args: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """The arguments of the architecture itself, and the alterations."""
    own = {name: value for name, value in model_args.items() if name not in ALTERATIONS}
    return own, {name: value for name, value in model_args.items() if name in ALTERATIONS}


def alter(model: nn.Module, alterations: Mapping[str, Scalar]) -> None:
    """Change a model in place.

    Raises:
        UserError: the model has nothing that could be changed, or a value does not exist.
    """
    for name, value in alterations.items():
        ALTERATIONS[name].put(model, value)


@contextmanager
def refusing_escapes(model: nn.Module, alterations: Mapping[str, Scalar]) -> Iterator[None]:
    """While images pass the altered model, watch for functions that an alteration could not replace.

    Whatever modules of torch call themselves does not count.

    Raises:
        UserError: the model called one, so that it is not what the config says.
    """
    if not alterations:
        yield
        return
    watch = _Watch(frozenset().union(*(ALTERATIONS[name].escapes for name in alterations)))
    leaves = [m for m in model.modules() if type(m).__module__.startswith("torch.nn.") and not [*m.children()]]
    handles = [leaf.register_forward_pre_hook(watch.enter) for leaf in leaves]
    handles += [leaf.register_forward_hook(watch.leave) for leaf in leaves]
    try:
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()
    for name in alterations:
        if found := sorted(watch.called.keys() & ALTERATIONS[name].escapes):
            raise UserError(
                f"`{name}`: {type(model).__name__} calls {', '.join(found)} as a function {watch.called.total()} times "
                "per pass, where nothing can be put in its place; set it to null, or choose another model"
            )


class _Watch(TorchFunctionMode):
    """Counts the calls of functions of these names, but for those within a module that it entered."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names, self.called, self._depth = names, Counter[str](), 0

    def enter(self, *_: Any) -> None:
        self._depth += 1

    def leave(self, *_: Any) -> None:
        self._depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if not self._depth and name in self.names:
            self.called[name] += 1
        return func(*args, **(kwargs or {}))
