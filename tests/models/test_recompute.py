"""Gradient checkpointing changes memory and time, and no bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.models import build, set_trainable
from pipeline.models.recompute import checkpoint_gradients


def train(name: str, *, checkpointed: bool, **freezing: bool) -> tuple[dict[str, Tensor], int]:
    """Two steps with dropout and stochastic depth; returns the state, and the bytes that the last forward pass kept."""
    torch.manual_seed(0)
    model = build(name, 10, dropout=0.2, stochastic_depth=0.3).train()
    set_trainable(model, 0, **freezing)
    if checkpointed:
        checkpoint_gradients(model)
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(step)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return model.state_dict(), kept


@pytest.mark.parametrize(
    ("name", "freezing"),
    [
        ("test_efficientnet", {}),
        ("test_efficientnet", {"freeze_norm": True}),
        ("resnet10t", {}),
        ("test_convnext", {}),
        ("vit_tiny_patch16_224", {}),
    ],
)
def test_no_bit_changes(name: str, freezing: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm statistics, and the number of batches that they are of, included."""
    if name.startswith("vit"):
        monkeypatch.setattr("pipeline.models.registry.timm.create_model", small_vit)
    (whole, kept), (again, kept_then) = (train(name, checkpointed=value, **freezing) for value in (False, True))
    for key, value in whole.items():
        assert torch.equal(again[key], value), key
    assert kept_then < 0.8 * kept


def small_vit(name: str, **arguments: object) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    del arguments["pretrained"]
    return VisionTransformer(img_size=64, embed_dim=48, depth=3, num_heads=3, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["wide_resnet10_1", "vgg11"])
def test_an_architecture_without_it_is_an_error(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 10)
    with pytest.raises(UserError, match=r"`gradient_checkpointing`: \w+ cannot compute .*set it to false"):
        checkpoint_gradients(model)
