"""Models with random weights in the model format, for tests of what is done with models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.models import build
from pipeline.models.format import ModelInfo, save_model


def save_random(
    path: Path, classes: tuple[str, ...], *, architecture: str = "wide_resnet10_1", seed: int = 0, size: int = 8,
    **values: Any,
) -> Path:  # fmt: skip
    """Write FILE.safetensors and FILE.json of a new model; `values` are further keys of model.json."""
    torch.manual_seed(seed)
    info = ModelInfo(
        schema=1,
        architecture=architecture,
        model_args={},
        classes=classes,
        input_size=(3, size, size),
        metrics={},
        lineage={},
        **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), **values},
    )
    save_model(path, build(architecture, len(classes)).state_dict(), info)
    return path
