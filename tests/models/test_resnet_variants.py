"""ResNet-A to -D against the figures of "Bag of Tricks" (He 2019, table 5 and figure 2) and timm's own builds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config import Training
from pipeline.models import build
from pipeline.models.cost import cost_of
from pipeline.models.format import ModelInfo
from pipeline.models.resnet_variants import LAYERS, VARIANTS

import timm  # isort: skip - after pipeline.models

CLASSES = tuple(str(number) for number in range(1000))


@pytest.mark.parametrize(("variant", "gflops"), [("a", 3.8), ("b", 4.1), ("c", 4.3), ("d", 4.3)])
def test_resnet50_has_the_operations_and_parameters_of_the_paper(variant: str, gflops: float) -> None:
    """Table 5 counts a multiplication with its addition as one operation; all have 25 million parameters.

    A has 3.858, which the paper takes from He 2016, where it is cut to 3.8.
    """
    training = Training(model=f"resnet50_{variant}", image_size=224)
    cost = cost_of(ModelInfo.of(training, training, CLASSES, {}))
    assert cost.flops / 2 / 1e9 == pytest.approx(gflops, abs=0.06)
    assert cost.parameters / 1e6 == pytest.approx(25.5, abs=0.1)


@pytest.mark.parametrize("depth", LAYERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_depth_has_the_shapes_of_figure_2(depth: int, variant: str) -> None:
    with torch.device("meta"):
        model = build(f"resnet{depth}_{variant}", 10).eval()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    per_block = 3 if depth >= 50 else 2
    assert sum(LAYERS[depth]) * per_block + 2 == depth  # with the stem and the classifier
    stem = 3 if variant in "cd" else 1
    shortcuts = 4 if depth >= 50 else 3
    assert len(convs) == sum(LAYERS[depth]) * per_block + stem + shortcuts
    if variant in "cd":
        stem_convs = [m for m in model.conv1 if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
        assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in stem_convs] == [
            (32, 3, 2),
            (32, 3, 1),
            (64, 3, 1),
        ]
    block = model.layer2[0]  # type: ignore[index]
    strides = [getattr(block, f"conv{number + 1}").stride[0] for number in range(per_block)]
    assert strides == ([2, 1, 1] if variant == "a" and depth >= 50 else [1, 2, 1] if depth >= 50 else [2, 1])
    pool, *rest = block.downsample
    assert isinstance(pool, nn.AvgPool2d) == (variant == "d")
    assert [m.stride[0] for m in (pool, *rest) if isinstance(m, nn.Conv2d)] == [1 if variant == "d" else 2]
    images = torch.zeros(1, 3, 64, 64, device="meta")
    assert model.forward_features(images).shape == (1, 2048 if depth >= 50 else 512, 2, 2)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("ours", "theirs"), [("resnet50_b", "resnet50"), ("resnet50_c", "resnet50c"), ("resnet18_d", "resnet18d")]
)
def test_variants_that_timm_has_too_compute_the_same(ours: str, theirs: str) -> None:
    a, b = build(ours, 5).eval(), timm.create_model(theirs, num_classes=5).eval()
    a.load_state_dict(b.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(a(images), b(images))
