"""The speeds at which a model trains and predicts, and images are read, on this machine, measured in a second each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.arrays import U8Array
from pipeline.config import Runtime, Scalar
from pipeline.models.folding import FoldedBatchNorm
from pipeline.models.forward import predict_logits
from pipeline.models.registry import build

_MEASURE_S = 1.0


class Network(NamedTuple):
    """What is measured."""

    architecture: str
    model_args: Mapping[str, Scalar]
    num_classes: int


def training_speed(network: Network, images: U8Array, runtime: Runtime) -> float:
    """The images per second through forward, backward and optimizer step, for one batch `images`, uint8 [B, S, S, 3].

    On a CPU this is the speed of one thread in its own CPU time, times the number of threads. It estimates the speed of
    the idle machine, however busy that is now.
    """
    model, inputs = _on_device(network, images, runtime)
    model.train()
    labels = torch.zeros(len(images), dtype=torch.int64, device=inputs.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.precision == "bf16"):
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _speed(step, len(images), runtime)


def prediction_speed(network: Network, images: U8Array, runtime: Runtime) -> float:
    """The images per second through a pass that predicts. As `training_speed` otherwise."""
    model, inputs = _on_device(network, images, runtime)
    folded = FoldedBatchNorm(model.eval(), inputs[:1])

    @torch.inference_mode()
    def step() -> None:
        with folded:
            predict_logits(model, inputs, torch.bfloat16 if runtime.precision == "bf16" else None)

    return _speed(step, len(images), runtime)


def reading_speed(read: Callable[[], U8Array], runtime: Runtime) -> float:
    """The images per second that a function reads. As `training_speed` otherwise."""
    return _speed(read, len(read()), runtime)


def _on_device(network: Network, images: U8Array, runtime: Runtime) -> tuple[nn.Module, Tensor]:
    device = torch.device(runtime.device)
    inputs = torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255
    model = build(network.architecture, network.num_classes, model_args=network.model_args).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, inputs.contiguous(memory_format=torch.channels_last)


def _speed(step: Callable[[], object], num_images: int, runtime: Runtime) -> float:
    on_cpu = runtime.device == "cpu"
    clock = time.process_time if on_cpu else time.monotonic
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()  # the first step allocates memory and chooses kernels
        started, num_steps = clock(), 0
        while clock() - started < _MEASURE_S:
            step()
            num_steps += 1
            if not on_cpu:
                torch.cuda.synchronize()
        speed = num_steps * num_images / (clock() - started)
    finally:
        torch.set_num_threads(threads)
    return speed * runtime.threads if on_cpu else speed
