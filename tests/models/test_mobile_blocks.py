"""The blocks of the mobile networks written out in torch's functions, and the networks on the meta device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models import build
from pipeline.models.cost import cost_at
from pipeline.models.forward import check_forward

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch


def normed(x: Tensor, norm: Any) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def depthwise(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Each channel by itself: a convolution of one channel, C times."""
    size, stride = convolution.kernel_size[0], convolution.stride[0]
    each = [
        F.conv2d(x[:, c : c + 1], convolution.weight[c : c + 1], stride=stride, padding=size // 2)
        for c in range(x.shape[1])
    ]
    return torch.cat(each, 1)


def pointwise(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    bias = 0 if convolution.bias is None else convolution.bias[None, :, None, None]
    return torch.einsum("bihw,oi->bohw", x, convolution.weight[:, :, 0, 0]) + bias


def test_mbconv_is_an_inverted_residual_with_a_linear_bottleneck_and_depthwise_convolutions() -> None:
    """Sandler 2018, figure 4 and table 1, with squeeze and excitation (Tan 2019, section 4)."""
    torch.manual_seed(0)
    model: Any = build("efficientnet", 3, model_args={"width": 0.5}).eval()
    block = model.blocks[2][1]
    for norm in (block.bn1, block.bn2, block.bn3):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    wide, narrow = block.conv_pw.weight.shape[:2]
    assert wide == 6 * narrow, "the residual is the narrow end: it is inverted"
    x = torch.randn(2, narrow, 8, 8)
    y = F.silu(normed(pointwise(x, block.conv_pw), block.bn1))
    y = F.silu(normed(depthwise(y, block.conv_dw), block.bn2))
    squeezed = F.silu(pointwise(y.mean((2, 3), keepdim=True), block.se.conv_reduce))
    y = y * torch.sigmoid(pointwise(squeezed, block.se.conv_expand))
    y = normed(pointwise(y, block.conv_pwl), block.bn3)  # no activation after it: the bottleneck is linear
    with torch.inference_mode():
        torch.testing.assert_close(block(x), x + y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [
        ("mobilenetv1_100", 4.2e6, 569e6),  # Howard 2017, table 4
        ("mobilenetv2_100", None, 300e6),  # Sandler 2018, table 4; its count of 3.4 million is 3.5 of what it describes
    ],
)
def test_mobilenets_have_the_cost_that_their_papers_print_and_can_be_trained(
    name: str, parameters: float | None, operations: float
) -> None:
    """The papers count a multiplication and an addition as one."""
    with torch.device("meta"):
        count = sum(weight.numel() for weight in build(name, 1000).parameters())
    assert count == pytest.approx(parameters or 3.5e6, rel=0.02)
    assert cost_at(name, 1000, (3, 224, 224), ()).flops / 2 == pytest.approx(operations, rel=0.03)
    check_forward(name, 10, {"image_size": 64})


def test_b8_is_that_of_timm_weight_by_weight() -> None:
    """Its width of 2.2 and depth of 3.6 are those of the authors' code; the paper ends at B7."""

    def shapes(name: str, **arguments: float) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {key: tensor.shape for key, tensor in timm.create_model(name, **arguments).state_dict().items()}

    ours = shapes("efficientnet", width=2.2, depth=3.6)
    assert ours == shapes("tf_efficientnet_b8")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(math.prod(shape) for key, shape in ours.items() if not key.endswith(statistics))
    assert count / 1e6 == pytest.approx(87.4, abs=0.05)
