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

_Versioned = tuple[Tensor | None, int]
"""A parameter or a buffer, and how often it was written to."""
_MARK = "_awaits_batch_norm"
"""The attribute of the output of a folded convolution: who folded it, and what gave it."""


class _Conv(NamedTuple):
    """A call of a convolution."""

    weight: Tensor
    bias: Tensor | None


class _Norm(NamedTuple):
    """A call of BatchNorm."""

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
    of_conv: tuple[_Versioned, ...]
    of_norm: tuple[_Versioned, ...]
    eps: float


class FoldedBatchNorm(TorchFunctionMode):
    """While it is entered, a model in eval mode skips each BatchNorm that reads a convolution which nothing else reads.

    With fixed statistics BatchNorm is a scale and a shift per channel. The convolution before it is computed with
    weights and a bias that have them: the same function but for rounding, and one pass less over its output. The model
    itself stays as it is; the folded weights cost memory of their own, and the mode 0.2 to 3 ms of the host per pass.

    A convolution whose output something else reads too, one that is called twice, and one whose weights or statistics
    are computed rather than parameters and buffers (weight standardization) are not folded, nor is anything of a model
    that has `folds_batch_norm = False`.

    Args:
        model: The network, with the weights that it predicts with.
        images: Images as the model takes them, [B, 3, S, S], with which one pass of its body shows what reads what.

    Raises:
        RuntimeError: while it is entered, something reads a folded convolution before its BatchNorm or beside it, as
            nothing did in that pass, or weights have changed since.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        pairs = _pairs(model, images) if getattr(model, "folds_batch_norm", True) else ()
        self._folded = {id(conv.weight): _fold(conv, norm) for conv, norm in pairs if _is_of(own, conv, norm)}
        """id of the weight of a convolution -> what takes its place."""
        self._num_awaited = 0
        """The folded convolutions whose BatchNorm has not come yet."""
        self._name = type(model).__name__

    def __len__(self) -> int:
        """How many BatchNorms are folded."""
        return len(self._folded)

    def __enter__(self) -> Self:
        """Skip them from now on."""
        if self._folded:  # a mode costs microseconds per call of torch
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Compute them again. Raises RuntimeError if one has not come after its convolution."""
        if self._folded:
            super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        missing, self._num_awaited = self._num_awaited, 0
        if missing and error is None:
            raise self._differs(f"no BatchNorm followed {missing} of them")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._normalize(*args, **kwargs)
        result = self._convolve(*args, **kwargs) if func is F.conv2d else func(*args, **kwargs)
        # Shapes and the like may be asked for: what asks for them gives no tensor and writes none.
        if any(map(self._awaited, _tensors((args, kwargs)))) and (result is None or _tensors([result])):
            raise self._differs(f"{getattr(func, '__name__', func)} reads one of them")
        return result

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any) -> Tensor:
        if (folded := self._folded.get(id(weight))) is None:
            return F.conv2d(input, weight, bias, *how, **named)
        if not _are(folded.of_conv, weight, bias):
            raise self._differs("weights have changed since")
        output = F.conv2d(input, folded.weight, folded.bias, *how, **named)
        setattr(output, _MARK, (self, folded))
        self._num_awaited += 1
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
        if (folded := self._awaited(input)) is None:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        is_own = _are(folded.of_norm, running_mean, running_var, weight, bias) and eps == folded.eps
        if training or not is_own:
            raise self._differs(
                "another BatchNorm than its own, a changed one, or one in training, follows one of them"
            )
        self._num_awaited -= 1
        return input.view_as(input)  # another object, without the mark, that everything may read

    def _awaited(self, tensor: Tensor) -> _Folded | None:
        """What gave a tensor that is for a BatchNorm alone; None if anything may read it."""
        by, folded = getattr(tensor, _MARK, (None, None))
        return folded if by is self else None

    def _differs(self, how: str) -> RuntimeError:
        return RuntimeError(
            f"{self._name} does not do what it did when its BatchNorm was folded into its convolutions: {how}, so its "
            "predictions would be wrong; give its class `folds_batch_norm = False`"
        )


class _Watcher(TorchDispatchMode):
    """Notes the convolutions of a pass and what reads their outputs, down to what scripted functions read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convs: dict[int, tuple[Tensor, _Conv]] = {}
        """id of an output -> that output, kept so that its id stays its own, and the convolution that gave it."""
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
            _, weight, bias, mean, variance, training, _, eps, _ = args
            norm = _Norm(mean, variance, weight, bias, training, eps)
            self.calls[id(mean)] += 1
        for tensor in _tensors((args, kwargs)):
            if id(tensor) in self.convs:
                self.readers.setdefault(id(tensor), []).append(norm)
        if func.overloadpacket is torch.ops.aten.conv2d:
            _, weight, bias, *_ = (*args, None)
            self.calls[id(weight)] += 1
            self.convs[id(result)] = result, _Conv(weight, bias)
        return result

    def pairs(self) -> Iterator[tuple[_Conv, _Norm]]:
        """Yield convolutions that only a BatchNorm with fixed statistics read, and it, if both were called once."""
        for key, (_, conv) in self.convs.items():
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
        body_of(model, images, None)
    return list(watcher.pairs())


def _is_of(own: set[int], conv: _Conv, norm: _Norm) -> bool:
    """Whether all that these two compute with is among these ids, rather than computed from the images."""
    used = *conv, norm.mean, norm.variance, norm.weight, norm.bias
    return all(tensor is None or id(tensor) in own for tensor in used)


def _fold(conv: _Conv, norm: _Norm) -> _Folded:
    assert norm.mean is not None
    assert norm.variance is not None
    statistics = norm.mean, norm.variance, norm.eps
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    of_norm = _versioned(norm.mean, norm.variance, norm.weight, norm.bias)
    return _Folded(weight.detach(), bias.detach(), _versioned(*conv), of_norm, norm.eps)


def _versioned(*tensors: Tensor | None) -> tuple[_Versioned, ...]:
    return tuple((tensor, _version(tensor)) for tensor in tensors)


def _are(known: Sequence[_Versioned], *tensors: Tensor | None) -> bool:
    """Whether these are the tensors that are known, and nobody has written to them since."""
    return all(
        tensor is own and _version(tensor) == version for (own, version), tensor in zip(known, tensors, strict=True)
    )


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in their tuples, lists and dictionaries."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found
