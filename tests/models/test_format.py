"""What can be saved as a model, and what is refused when it is opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import Scalar
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.format import ModelInfo, load_model, read_state, save_model


def info(architecture: str, size: int, **arguments: Scalar) -> ModelInfo:
    of = {"schema": 1, "architecture": architecture, "model_args": arguments, "lineage": {}, "metrics": {}}
    seen = {"classes": ["a", "b"], "input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3}
    return ModelInfo.model_validate({**of, **seen})


def test_a_model_whose_architecture_cannot_take_its_input_size_is_refused(tmp_path: Path) -> None:
    found = info("vit_tiny_patch16_224", 48, embed_dim=12, depth=1, num_heads=1, img_size=32)
    model = build(found.architecture, 2, model_args=found.model_args)
    save_model(tmp_path / "m.safetensors", model.state_dict(), found)
    with pytest.raises(UserError, match=r"48 pixels \(`input_size in .*m\.json`\): Input height \(48\) doesn't match"):
        load_model(tmp_path / "m.safetensors")


def test_weights_that_layers_share_are_saved(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory."""
    shared = nn.Linear(2, 2)
    save_model(tmp_path / "m.safetensors", nn.Sequential(shared, shared).state_dict(), info("resnet9", 8))
    assert torch.equal(read_state(tmp_path / "m.safetensors")["1.weight"], shared.weight)
