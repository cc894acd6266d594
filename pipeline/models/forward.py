"""The forward pass that predicts, and the dry run that finds what an architecture cannot do before it costs a training.

Shapes: B images, C classes, S pixels per side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Scalar
from pipeline.errors import UserError
from pipeline.models.alterations import refusing_escapes, split_args
from pipeline.models.registry import build

SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
"""Sides in pixels at which architectures are usually trained; errors propose the first that works."""


def predict_logits(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Images [B, 3, S, S] -> logits float32 [B, C], with the features in `dtype`, by timm's two halves of `forward`.

    The head runs in fp32: bf16 logits have 8 bits, so that ties would decide the ranking by log-odds.
    """
    logits: Tensor = model.forward_head(body_of(model, images, dtype))  # type: ignore[operator]
    return logits


def predict_features(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Images [B, 3, S, S] -> what the classifier reads, float32 [B, D]. The body runs in `dtype`, the pooling in fp32.

    Raises:
        UserError: the architecture has no way to say it.
    """
    return _before_classifier(model, body_of(model, images, dtype))


def predict_both(model: nn.Module, images: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Logits and features of one pass, as `predict_logits` and `predict_features` give them. Raises UserError as the
    latter."""
    body = body_of(model, images, dtype)
    logits: Tensor = model.forward_head(body)  # type: ignore[operator]
    return logits, _before_classifier(model, body)


def _before_classifier(model: nn.Module, body: Any) -> Tensor:
    try:
        features: Tensor = model.forward_head(body, pre_logits=True)  # type: ignore[operator]
    except TypeError as error:
        raise UserError(
            f"`model`: {type(model).__name__} has no `pre_logits` in its forward_head, so its features cannot be had; "
            "choose another encoder (nearly all of timm's have it)"
        ) from error
    return features


def body_of(model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Any:
    """What the head of a model reads of images [B, 3, S, S], in fp32; the body runs in `dtype`."""
    with torch.autocast(images.device.type, dtype) if dtype else nullcontext():  # of which the meta device has none
        return _as_float(model.forward_features(images))  # type: ignore[operator]


def _as_float(features: Any) -> Any:
    """Features in fp32. Some architectures have several, in a list or a tuple."""
    if isinstance(features, list | tuple):
        return type(features)([_as_float(each) for each in features])
    return features.float()


def check_forward(
    architecture: str,
    num_classes: int,
    sizes: Mapping[str, int],
    *,
    model_args: Mapping[str, Scalar] | None = None,
    batch_size: int = 2,
    trains: bool = True,
) -> None:
    """Refuse an architecture that cannot take images of these sizes.

    It predicts one image and, with `trains`, takes one step of a training, of zeros. Tensors are on torch's meta
    device, which has shapes and no values, so it takes 0.05 to 2 seconds and no memory, whatever the size of the model.
    No generator moves.

    Args:
        architecture: The name in timm.
        num_classes: The number of classes C.
        sizes: Config key -> the side in pixels that it sets, such as `finetune.image_size`.
        model_args: More arguments of the architecture.
        batch_size: Images in a forward pass of the training, if they are fewer than two: BatchNorm may need two.
        trains: Whether the model is trained, not only used.

    Raises:
        UserError: the model cannot be built, or cannot take images of a size. The message has the config keys, and a
            fix that was tried.
    """
    given, batch = dict(model_args or {}), min(batch_size, 2) if trains else 0
    for key, size in sizes.items():
        problem = _problem(architecture, num_classes, size, given, batch, with_values=True)
        if problem is None:
            continue

        def works(size: int, arguments: Mapping[str, Scalar], batch: int = batch) -> bool:
            try:
                return _problem(architecture, num_classes, size, arguments, batch) is None
            except UserError:  # an argument that the architecture does not have
                return False

        fix = _fix(architecture, given, sizes, key, works)
        if batch == 1 and works(size, given, batch=2):
            fix = "set batch_size so that each process has two images per micro-step"
        what = f"{architecture} with {given}" if given else architecture
        raise UserError(f"`model`: {what} cannot take images of {size} pixels (`{key}`): {problem}; {fix}")


def _fix(
    architecture: str,
    given: Mapping[str, Scalar],
    sizes: Mapping[str, int],
    key: str,
    works: Callable[[int, Mapping[str, Scalar]], bool],
) -> str:
    """What makes the architecture take all sizes, or else another size; each is tried first."""
    arguments: dict[str, dict[str, Scalar]] = {
        f"add img_size: {sizes[key]} to model_args": {**given, "img_size": sizes[key]},
        "add dynamic_img_size: true to model_args": {**given, "dynamic_img_size": True},
        **{f"set {name} to null": {k: v for k, v in given.items() if k != name} for name in split_args(given)[1]},
        "drop model_args": {},
    }
    for fix, values in arguments.items():
        if all(works(size, values) for size in sizes.values()):
            return fix
    own = timm.get_pretrained_cfg(architecture)
    nominal = [int(own.input_size[-1])] if own is not None else []
    order = [*(size for size in SIZES if size > sizes[key]), *nominal, *reversed(SIZES)]
    if (size := next((size for size in order if works(size, given)), None)) is not None:
        return f"set {key} to {size}"
    return "choose another model (docs/models.md lists those that cannot be trained here)"


def _problem(
    architecture: str,
    num_classes: int,
    size: int,
    model_args: Mapping[str, Scalar],
    batch_size: int,
    *,
    with_values: bool = False,
) -> str | None:
    """Why this architecture cannot take images of this size; None if it can.

    `with_values` tries again with values what fails without: code that looks at them cannot run on the meta device.

    Raises:
        UserError: it cannot be built.
    """
    arguments = tuple(model_args.items())
    problem = _dry_run(architecture, num_classes, size, arguments, batch_size, "meta")
    return problem and (
        _dry_run(architecture, num_classes, size, arguments, batch_size, "cpu") if with_values else problem
    )


@functools.cache
def _dry_run(
    architecture: str, num_classes: int, size: int, model_args: tuple[tuple[str, Scalar], ...], batch_size: int, on: str
) -> str | None:
    """The first problem of a model on a device; None without one. Raises UserError if it cannot be built."""
    with torch.random.fork_rng(devices=[]), torch.device(on):
        model = build(architecture, num_classes, model_args=dict(model_args))
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with refusing_escapes(model, split_args(dict(model_args))[1]):
            return _try(model, num_classes, size, batch_size)


def _try(model: nn.Module, num_classes: int, size: int, batch_size: int) -> str | None:
    images = torch.zeros(max(batch_size, 1), 3, size, size).contiguous(memory_format=torch.channels_last)
    before = _shapes(model)
    try:
        model.eval()
        with torch.inference_mode():
            outputs = {1: predict_logits(model, images[:1])}
        if batch_size:
            model.train()
            outputs[batch_size] = model(images)
        for number, logits in outputs.items():
            if not isinstance(logits, Tensor) or logits.shape != (number, num_classes):
                shape = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
                return f"its output is of {shape}, not logits of shape [{number}, {num_classes}]"
        if batch_size:
            F.cross_entropy(outputs[batch_size], torch.zeros(batch_size, dtype=torch.int64)).backward()
        if changed := [name for name, shape in _shapes(model).items() if before.get(name) != shape]:
            return f"its {changed[0]} changes its shape as images pass, so the average of its weights cannot follow"
    except Exception as error:  # architectures raise nearly anything, from AssertionError to TypeError
        return str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
    return None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
