"""Dead units: those that give zero for every image, and so pass on neither a value nor a gradient (CS231n, lecture on
training neural networks, "dead ReLU")."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipeline.models.activations import is_activation
from pipeline.stages.ranks import Ranks

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class DeadUnits:
    """Watches a model while images pass it. A unit is a channel of what an activation gives, at all of its positions.

    It takes one comparison per value, and the host waits for nothing. Activations that a model calls as functions are
    not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.alive: dict[tuple[str, int], Tensor] = {}
        """(Name of an activation, how often it was called before within the pass) -> whether each unit gave anything,
        bool [channels]. Architectures call one activation after several layers."""
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._first: nn.Module | None = None
        self._calls: dict[str, int] = {}
        self._is_last_dim = False

    def __enter__(self) -> Self:
        """Begin to watch."""
        for name, module in self._model.named_modules():
            if isinstance(module, _LAYERS):
                self._handles.append(module.register_forward_hook(self._see_layer))
            elif is_activation(module):
                self._handles.append(module.register_forward_hook(self._see_activation(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def share(self, ranks: Ranks) -> float | None:
        """The share of the units, of all layers together, that were dead for the images of all ranks; None if no
        activation was seen. All ranks must call this."""
        of_all = ranks.gather({key: alive.cpu() for key, alive in self.alive.items()})
        keys = sorted({key for of_rank in of_all for key in of_rank})
        alive = [torch.stack([of_rank[key] for of_rank in of_all if key in of_rank]).any(0) for key in keys]
        return 1 - float(torch.cat(alive).float().mean()) if alive else None

    def _see_layer(self, module: nn.Module, _: Any, output: Tensor) -> None:
        """Note where the channels lie: a linear layer has them in the last dimension, a convolution in the second."""
        if self._first is None:
            self._first = module
        if module is self._first:  # another pass begins
            self._calls.clear()
        self._is_last_dim = isinstance(module, nn.Linear)

    def _see_activation(self, name: str) -> Any:
        def see(module: nn.Module, _: Any, output: Tensor) -> None:
            key = name, self._calls.get(name, 0)
            self._calls[name] = key[1] + 1
            channels = output.ndim - 1 if self._is_last_dim else 1
            alive = (output != 0).any(dim=tuple(d for d in range(output.ndim) if d != channels))
            self.alive[key] = self.alive[key] | alive if key in self.alive else alive

        return see
