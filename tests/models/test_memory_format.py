"""Networks train channels last, also those that begin with the convolution at which torch fails."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from support.command import environment
from torch import nn

from pipeline.models import build
from pipeline.models.memory_format import channels_last

STEP = """
import torch
from pipeline.models import build
from pipeline.models.memory_format import channels_last
torch.set_num_threads(1)
model = channels_last(build("repvgg_a0", 4), torch.device("cpu")).train()
for _ in range(3):
    model(torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)).sum().backward()
"""


@pytest.mark.process
def test_a_network_that_begins_with_a_strided_1x1_convolution_trains_on_a_cpu() -> None:
    """torch 2.13 writes outside of its memory there, and the process died by a signal."""
    done = subprocess.run([sys.executable, "-c", STEP], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


def test_other_networks_are_left_as_they_are() -> None:
    for name in ("resnet9", "wide_resnet28_2", "resnet18"):
        model = channels_last(build(name, 4), torch.device("cpu"))
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_gradient_is_that_of_the_convolution_with_its_stride() -> None:
    conv = nn.Conv2d(3, 8, 1, stride=2)
    images = torch.randn(2, 3, 16, 16)
    expected = torch.autograd.grad(conv(images).square().sum(), conv.weight)[0]
    moved = channels_last(conv, torch.device("cpu"))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(torch.autograd.grad(moved(last).square().sum(), moved.weight)[0], expected, atol=1e-5)
