"""Architectures: everything in timm, plus what timm lacks, registered with timm by importing this package.

`timm.create_model("wide_resnet28_2", num_classes=10)` works after `import pipeline.models`.
"""

from pipeline.models.compat import declare_missing_ops

declare_missing_ops()  # must run before anything imports timm, which imports torchvision

from pipeline.models import (  # noqa: E402 - register their architectures
    alexnet,
    compound_scaling,
    mlp,
    polynet,
    resnet9,
    resnet_variants,
    wide_resnet,
)
from pipeline.models.layers import num_frozen, set_trainable  # noqa: E402
from pipeline.models.registry import build, list_own_models  # noqa: E402

__all__ = [
    "alexnet",
    "build",
    "compound_scaling",
    "list_own_models",
    "mlp",
    "num_frozen",
    "polynet",
    "resnet9",
    "resnet_variants",
    "set_trainable",
    "wide_resnet",
]
