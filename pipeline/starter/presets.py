"""How pretrained networks are fine-tuned on few labels: gently, so that little of what they know is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_WITH_BATCH_NORM: Mapping[str, Any] = {
    "optimizer": {"name": "sgd", "lr": 0.005, "lr_batch_size": 64, "weight_decay": 5e-5},
    "freeze_norm": True,
    "layer_decay": 0.75,
    "clip_norm": 2.0,
}
"""For CNNs with BatchNorm. On one carve of clothing photographs, with 300 labels and BatchNorm frozen, a rate of 0.005
for 64 images gained points of val over the labels that it learned from (docs/results.md), and one of 0.01 lost one
(docs/log.md). On labels alone a training went up to chance at 0.005 where gradients were not clipped."""
_WITH_LAYER_NORM: Mapping[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 5e-5, "weight_decay": 0.05},
    "layer_decay": 0.75,
}
"""For ViTs and ConvNeXts. Both decays are those that MAE fine-tunes large ViTs with (He 2022; FINETUNE.md of its
repository), at a rate of 1e-3 for 256 images. The rate here is ConvNeXt's (Liu 2022; TRAINING.md of its repository),
which takes it for 512 images, with a layer decay of 0.7 or 0.8 and next to no weight decay. As a whole it is no
published recipe."""


def finetuning_preset(network: nn.Module) -> Mapping[str, Any]:
    """The keys of a training that fine-tune a pretrained network."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    return _WITH_BATCH_NORM if has_batch_norm else _WITH_LAYER_NORM
