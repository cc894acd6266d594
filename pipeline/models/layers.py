"""The layers of a network: which of them are frozen, how deep each one lies, and which are its classifier."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from pipeline.errors import UserError


def set_trainable(model: nn.Module, frozen_layers: int, *, freeze_norm: bool = False) -> None:
    """Freeze the stem and the first `frozen_layers` blocks, and with `freeze_norm` every BatchNorm.

    What is frozen gets no gradients, and is in eval mode: it is a fixed function. Call this after `model.train()`,
    which puts it back into train mode.

    Raises:
        UserError: the model does not describe the order of its layers, or has no BatchNorm.
    """
    if not frozen_layers and not freeze_norm:
        return
    norms = _batch_norms(model) if freeze_norm else {}
    frozen = [f"{name}.{own}" for name, norm in norms.items() for own, _ in norm.named_parameters()]
    if frozen_layers:
        frozen += [name for name, depth in depths(model, "frozen_layers", "0").items() if depth <= frozen_layers]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    rest(model)
    for norm in norms.values():  # those without parameters too
        norm.eval()


def rest(model: nn.Module) -> None:
    """Put every part that is frozen as a whole into eval mode: its BatchNorm keeps its statistics, and it drops no
    features or paths, which would be noise on what cannot learn from it."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def depths(model: nn.Module, key: str, off: str) -> dict[str, int]:
    """Parameter -> the number of its layer, from 0 at the stem on, as timm groups them.

    Raises:
        UserError: the model does not describe the order of its layers, so `key` of the config must be `off`.
    """
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise UserError(f"`{key}`: {type(model).__name__} does not describe its layers; set it to {off}")
    return {name: int(depth) for name, depth in group_parameters(model, matcher(coarse=False), reverse=True).items()}


def num_frozen(model: nn.Module) -> int:
    """The number of parameters without gradients."""
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def lr_scales(model: nn.Module, layer_decay: float, head_lr: float) -> dict[str, float]:
    """Parameter -> the factor on its learning rate; empty if all have the same rate.

    A layer has layer_decay to the power of its distance from the last one (Clark 2020, ELECTRA; Bao 2021, BEiT), and
    the classifier `head_lr`.

    Raises:
        UserError: the model describes neither the order of its layers nor its classifier, which is needed.
    """
    if layer_decay == head_lr == 1:
        return {}
    scales = {name: 1.0 for name, _ in model.named_parameters()}
    if layer_decay != 1:
        of = depths(model, "layer_decay", "1")
        last = max(of.values())
        scales = {name: layer_decay ** (last - depth) for name, depth in of.items()}
    if head_lr != 1:
        for name in of_classifier(model, "head_lr", "1"):
            scales[name] *= head_lr
    return scales


def of_classifier(model: nn.Module, key: str, off: str) -> set[str]:
    """The parameters of the classifier.

    Raises:
        UserError: the model does not say which layer that is, so `key` of the config must be `off`.
    """
    layers = classifiers(model)
    found = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in layers}
    if not found:
        raise UserError(
            f"`{key}`: {type(model).__name__} does not say which layer is its classifier (get_classifier); set it to "
            f"{off}"
        )
    return found


def classifiers(model: nn.Module) -> set[str]:
    """The names of the layers that timm knows as a model's classifier; pretrained weights may lack them."""
    if not hasattr(model, "get_classifier"):
        return set()
    heads = model.get_classifier()  # type: ignore[operator]
    parts = {id(part) for head in (heads if isinstance(heads, tuple | list) else [heads]) for part in head.modules()}
    return {name for name, module in model.named_modules() if id(module) in parts}


def _batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorms of a model by name, timm's own and synchronized ones included. Raises UserError without any."""
    found: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if isinstance(m, BatchNorm)}
    if not found:
        raise UserError(f"`freeze_norm`: {type(model).__name__} has no BatchNorm to freeze; set it to false")
    return found
