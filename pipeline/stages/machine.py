"""The machine of a run, resolved once: device, precision, threads and environment."""

from __future__ import annotations

import functools
import logging
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import __version__
from pipeline.config import Precision, Runtime, changed
from pipeline.errors import UserError
from pipeline.stages.fingerprint import code_version
from pipeline.stages.plugins import digests
from pipeline.threads import num_cores

if TYPE_CHECKING:
    import torch

log = logging.getLogger("selftrain.runtime")


def resolve(runtime: Runtime) -> Runtime:
    """Replace each `auto` by what this machine has, so that the resolved config says what ran.

    Raises:
        UserError: this machine lacks something that the config asks for, such as fp16 on a CPU, which Accelerate would
            silently run as fp32.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if runtime.device == "cuda" and not has_cuda:
        raise UserError("`runtime.device`: cuda was asked for, but torch sees no GPU; set it to cpu")
    device = runtime.device if runtime.device != "auto" else ("cuda" if has_cuda else "cpu")
    if device == "cuda" and runtime.processes > torch.cuda.device_count():
        raise UserError(
            f"`runtime.processes` is {runtime.processes}, but torch sees {torch.cuda.device_count()} GPUs; each "
            "process needs its own: set it lower"
        )
    precision = runtime.precision
    if device == "cpu" and precision == "fp16":
        raise UserError("`runtime.precision`: fp16 does not run on CPUs; set it to bf16 or fp32")
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else _cpu_has_bf16()
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    elif precision == "bf16" and not has_bf16:
        log.warning(
            "runtime.precision is bf16, which the hardware here only emulates (13 times slower than fp32 on an AMD "
            "Zen 3); set it to auto, or to fp32"
        )
    threads = runtime.threads or max(1, num_cores() // runtime.processes)
    return changed(runtime, device=device, precision=precision, threads=threads)


def precision_here(precision: Precision) -> Precision:
    """The precision that a model was trained in; for fp16 on a CPU, which does not run, fp32 with a warning."""
    import torch

    if precision == "fp16" and not torch.cuda.is_available():
        log.warning("the run's precision is fp16, which does not run on CPUs; measured in fp32")
        return "fp32"
    return precision


def environment(runtime: Runtime | None = None) -> dict[str, str | int]:
    """All that a bit-exact resume relies on beside the config; stage.json has it, and a resume compares it first.

    Args:
        runtime: The resolved runtime; None for a stage that does not use torch.
    """
    light: dict[str, str | int] = {
        "selftrain": __version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        **digests(),
    }
    if runtime is None:
        return light
    import PIL
    import torch

    return {
        **light,
        "commit": code_version(Path(__file__).parents[2]),
        "torch": torch.__version__,
        "timm": version("timm"),  # an import before pipeline.models fails beside a CPU-only torch
        "pillow": PIL.__version__,
        "device": runtime.device,
        "processor": processor(runtime.device),
        "threads": runtime.threads,
        "processes": runtime.ranks,  # on however many machines
        "precision": runtime.precision,
    }


@functools.cache
def processor(device: str) -> str:
    """The model of this machine's GPU or CPU, because another model may add in another order."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def device_of(runtime: Runtime) -> torch.device:
    """The device of this process: the CPU, or the GPU of its local rank."""
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cpu") if runtime.device == "cpu" else torch.device("cuda", local_rank)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AMX or AVX512-BF16); emulation is slower than fp32."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
