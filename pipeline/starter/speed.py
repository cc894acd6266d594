"""The speed at which a model trains on this machine, measured in about a second."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch.nn import functional as F

from pipeline.arrays import U8Array
from pipeline.config import Runtime, Scalar
from pipeline.models.registry import build

_MEASURE_S = 1.0


def training_speed(
    architecture: str,
    model_args: Mapping[str, Scalar],
    images: U8Array,
    num_classes: int,
    runtime: Runtime,
) -> float:
    """The images per second through forward, backward and optimizer step, for one batch `images`, uint8 [B, S, S, 3].

    On a CPU this is the speed of one thread in its own CPU time, times the number of threads. It estimates the speed of
    the idle machine, however busy that is now.
    """
    on_cpu = runtime.device == "cpu"
    clock = time.process_time if on_cpu else time.monotonic
    device = torch.device(runtime.device)
    inputs = torch.from_numpy(images).to(device).permute(0, 3, 1, 2) / 255
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    model = build(architecture, num_classes, model_args=model_args).to(device).train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.precision == "bf16"):
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if not on_cpu:
            torch.cuda.synchronize()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()  # the first step allocates memory and chooses kernels
        started, num_steps = clock(), 0
        while clock() - started < _MEASURE_S:
            step()
            num_steps += 1
        speed = num_steps * len(images) / (clock() - started)
    finally:
        torch.set_num_threads(threads)
    return speed * runtime.threads if on_cpu else speed
