"""BatchNorm folded into the convolutions before it, for predictions.

Shapes: B images, S pixels per side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.forward import body_of


class _Conv(NamedTuple):
    """A call of a convolution."""

    output: Tensor
    weight: Tensor
    bias: Tensor | None


class _Norm(NamedTuple):
    """A call of BatchNorm."""

    features: Tensor
    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float


class _Folded(NamedTuple):
    """A convolution that does what it and the BatchNorm after it do."""

    weight: Tensor
    bias: Tensor
    of: Tensor
    """The weight that the model has in its place, kept so that its id stays its own."""
    mean: Tensor
    """By which its BatchNorm is known."""


class FoldedBatchNorm(TorchFunctionMode):
    """While it is entered, a model in eval mode does without the BatchNorm of what a convolution alone gives it.

    With fixed statistics BatchNorm is a scale and a shift per channel, which the weights and the bias of the
    convolution before it can have in them: the same function but for rounding, and one pass less over its output.

    The model itself stays as it is. What something else reads too, what is called twice, and weights and statistics
    that are no parameters or buffers of the model, such as those of weight standardization, are not folded, nor is
    anything of a model that has `folds_batch_norm = False`. It costs the memory of the folded weights.

    Args:
        model: The network, with the weights that it predicts with; what becomes of them later is not seen.
        images: Images as the model takes them, [B, 3, S, S], by which a pass of the body finds out what follows what.

    Raises:
        RuntimeError: while it is entered, the model takes another way than these images did.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        pairs = _pairs(model, images) if getattr(model, "folds_batch_norm", True) else ()
        self._folded = {id(conv.weight): _fold(conv, norm) for conv, norm in pairs if _is_of(own, conv, norm)}
        """id of the weight of a convolution -> what takes its place."""
        self._awaited: dict[int, tuple[Tensor, _Folded]] = {}
        """id of an output of a folded convolution that no BatchNorm has read yet -> that output, and what gave it."""
        self._name = type(model).__name__

    def __len__(self) -> int:
        """How many BatchNorms are folded."""
        return len(self._folded)

    def __enter__(self) -> Self:
        """Begin to do without."""
        if self._folded:  # a mode costs microseconds per call of torch
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it. Raises RuntimeError when a BatchNorm did not come."""
        if self._folded:
            super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        missed = len(self._awaited)
        self._awaited.clear()
        if missed and error is None:
            raise self._other_way(f"no BatchNorm followed {missed} of them")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        if func is F.conv2d:
            return self._convolve(*args, **(kwargs or {}))
        if func is F.batch_norm:
            return self._normalize(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any) -> Tensor:
        if (folded := self._folded.get(id(weight))) is None:
            return F.conv2d(input, weight, bias, *how, **named)
        output = F.conv2d(input, folded.weight, folded.bias, *how, **named)
        self._awaited[id(output)] = output, folded
        return output

    def _normalize(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if id(input) not in self._awaited:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        _, folded = self._awaited.pop(id(input))
        if running_mean is not folded.mean or training:
            raise self._other_way("another BatchNorm than its own, or one in training, followed a convolution")
        return input

    def _other_way(self, how: str) -> RuntimeError:
        return RuntimeError(
            f"{self._name} took another way than when its BatchNorm was folded into its convolutions ({how}), so its "
            "predictions would be wrong; give its class `folds_batch_norm = False`"
        )


class _Watcher(TorchDispatchMode):
    """Notes the convolutions of a pass and what reads their outputs, down to what scripted functions read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convs: dict[int, _Conv] = {}
        """id of an output -> the convolution that gave it, which keeps the output, so that the id stays its own."""
        self.readers: dict[int, list[_Norm | None]] = {}
        """id of an output -> what read it: a BatchNorm, or anything else (None)."""
        self.calls: Counter[int] = Counter()
        """id of the weight of a convolution, or of the mean of a BatchNorm -> how often it was called."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of an operator. Operators have their arguments in order."""
        result = func(*args, **(kwargs or {}))
        norm = None
        if func.overloadpacket is torch.ops.aten.batch_norm:
            features, weight, bias, mean, variance, training, _, eps, _ = args
            norm = _Norm(features, mean, variance, weight, bias, training, eps)
            self.calls[id(mean)] += 1
        self.read((args, kwargs), norm)
        if func.overloadpacket is torch.ops.aten.conv2d:
            _, weight, bias, *_ = (*args, None)
            self.calls[id(weight)] += 1
            self.convs[id(result)] = _Conv(result, weight, bias)
        return result

    def read(self, value: Any, by: _Norm | None = None) -> None:
        """Note that the tensors of a value are read."""
        for tensor in _tensors(value):
            if id(tensor) in self.convs:
                self.readers.setdefault(id(tensor), []).append(by)

    def pairs(self) -> Iterator[tuple[_Conv, _Norm]]:
        """Yield convolutions that only a BatchNorm with fixed statistics read, and it, if both were called once."""
        for key, conv in self.convs.items():
            readers = self.readers.get(key, [])
            norm = readers[0] if len(readers) == 1 else None
            if norm is None or norm.training or norm.mean is None or norm.variance is None:
                continue
            if self.calls[id(conv.weight)] == self.calls[id(norm.mean)] == 1:
                yield conv, norm


def _pairs(model: nn.Module, images: Tensor) -> Iterable[tuple[_Conv, _Norm]]:
    """The convolutions of a body that only a BatchNorm reads, and it."""
    # In inference mode operators come whole, as convolutions and BatchNorms, and not as what they are made of.
    with torch.inference_mode(), _Watcher() as watcher:
        body = body_of(model, images, None)
        watcher.read(body)
    return list(watcher.pairs())


def _is_of(own: set[int], conv: _Conv, norm: _Norm) -> bool:
    """Whether all that these two compute with is among these ids, rather than computed from the images."""
    used = conv.weight, conv.bias, norm.mean, norm.variance, norm.weight, norm.bias
    return all(tensor is None or id(tensor) in own for tensor in used)


def _fold(conv: _Conv, norm: _Norm) -> _Folded:
    assert norm.mean is not None
    assert norm.variance is not None
    statistics = norm.mean, norm.variance, norm.eps
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    return _Folded(weight.detach(), bias.detach(), conv.weight, norm.mean)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
