"""BatchNorm folded into the convolutions before it, for predictions.

Shapes: B images, S pixels per side.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from pipeline.models.forward import body_of

log = logging.getLogger("selftrain.models")


class FoldedBatchNorm(TorchFunctionMode):
    """While it is entered, a model in eval mode does without the BatchNorm of what a convolution alone gives it.

    With fixed statistics BatchNorm is a scale and a shift per channel, which the weights and the bias of the
    convolution before it can have in them: the same function but for rounding, and one pass less over its output. On a
    CPU a prediction of EfficientNet-Lite0 takes about 0.7 of the time and one of ResNet-18 0.9 (benchmarks/results.md).

    The model stays as it is, so that its averages can go on and its layers be watched. What something else reads too,
    what is called twice, and weights that are computed (as weight standardization does) are not folded.

    Args:
        model: The network, with the weights that it predicts with; what becomes of them later is not seen.
        images: Images as the model takes them, [B, 3, S, S], by which one pass finds out what follows what.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        with torch.inference_mode(), _Watcher() as watcher:
            body = body_of(model, images, None)
            features = [tensor.clone() for tensor in _tensors(body)]  # the head may change them in place
            model.forward_head(body)  # type: ignore[operator]
        parameters = {id(parameter) for parameter in model.parameters()}
        pairs = [(conv, norm) for conv, norm in watcher.pairs() if id(conv.weight) in parameters]
        self._folded = {id(conv.weight): (conv.weight, *_fold(conv, norm)) for conv, norm in pairs}
        """id of a convolution's weight -> that weight, so that the id stays its own, and the folded weight and bias."""
        self._skipped = {id(norm.mean): norm.mean for _, norm in pairs}
        """id of the mean of a BatchNorm -> that mean."""
        if pairs and not self._gives(features, model, images):
            log.warning(
                "%s: something that torch does not show reads what its convolutions give (a scripted function?), so "
                "BatchNorm is not folded into them, which would be faster",
                type(model).__name__,
            )
            self._folded, self._skipped = {}, {}

    def __len__(self) -> int:
        """How many BatchNorms are folded."""
        return len(self._skipped)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        kwargs = kwargs or {}
        if func is F.batch_norm and id(_Norm.of(*args, **kwargs).mean) in self._skipped:
            return _Norm.of(*args, **kwargs).features
        if func is F.conv2d:
            return self._convolve(*args, **kwargs)
        return func(*args, **kwargs)

    def _gives(self, features: Sequence[Tensor], model: nn.Module, images: Tensor) -> bool:
        """Whether the folded model gives these features, but for rounding."""
        with torch.inference_mode(), self:
            found = _tensors(body_of(model, images, None))
            return all(_is_close(ours, theirs) for ours, theirs in zip(found, features, strict=True))

    def _convolve(
        self, features: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **named: Any
    ) -> Tensor:
        if (folded := self._folded.get(id(weight))) is not None:
            _, weight, bias = folded
        return F.conv2d(features, weight, bias, *how, **named)


class _Conv(NamedTuple):
    """One call of a convolution."""

    weight: Tensor
    bias: Tensor | None
    output: Tensor
    readers: list[_Norm | None]
    """What took its output, one entry per call: a BatchNorm with fixed statistics, or anything else (None)."""


class _Norm(NamedTuple):
    """One call of a BatchNorm, with the parameters that `F.batch_norm` has."""

    features: Tensor
    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    eps: float

    @classmethod
    def of(
        cls,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> _Norm:
        """The call with these arguments."""
        return cls(input, running_mean, running_var, weight, bias, training, eps)


class _Watcher(TorchFunctionMode):
    """Notes the convolutions of a pass, and what takes their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convs: dict[int, _Conv] = {}
        """id of an output -> the convolution that gave it, which keeps the output, so that the id stays its own."""
        self.calls: Counter[int] = Counter()
        """id of a weight or a mean -> how many convolutions or BatchNorms were called with it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of `func`."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        norm = _Norm.of(*args, **kwargs) if func is F.batch_norm else None
        if norm is not None:
            self.calls[id(norm.mean)] += 1
        if any(True for _ in _tensors(result)):  # shapes and the like are no use of what a tensor holds
            for tensor in _tensors((args, kwargs)):
                if (conv := self.convs.get(id(tensor))) is not None:
                    conv.readers.append(norm)
        if func is F.conv2d:
            self._note(result, *args, **kwargs)
        return result

    def _note(
        self, output: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
    ) -> None:
        self.calls[id(weight)] += 1
        self.convs[id(output)] = _Conv(weight, bias, output, [])

    def pairs(self) -> Iterator[tuple[_Conv, _Norm]]:
        """Yield convolutions that only a BatchNorm with fixed statistics read, and it, if both were called once."""
        for conv in self.convs.values():
            norm = conv.readers[0] if len(conv.readers) == 1 else None
            if norm is None or norm.training or norm.mean is None or norm.variance is None:
                continue
            if self.calls[id(conv.weight)] == self.calls[id(norm.mean)] == 1:
                yield conv, norm


def _fold(conv: _Conv, norm: _Norm) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a convolution that does what these two do."""
    assert norm.mean is not None
    assert norm.variance is not None
    statistics = norm.mean, norm.variance, norm.eps
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    return weight.detach(), bias.detach()


def _is_close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether all values are equal but for 1% of the largest, which is more than rounding and less than a mistake."""
    return torch.allclose(ours, theirs, rtol=0, atol=0.01 * float(theirs.abs().max()), equal_nan=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
