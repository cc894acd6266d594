"""What the entry points of our architectures share: what timm passes besides a network's own arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

M = TypeVar("M")


def create(network: Callable[..., M], pretrained: bool, arguments: dict[str, Any]) -> M:
    """Build a network that has no pretrained weights. Raises ValueError when they are asked for."""
    if pretrained:
        raise ValueError("no pretrained weights exist for this architecture")
    of_timm = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return network(**{name: value for name, value in arguments.items() if name not in of_timm})
