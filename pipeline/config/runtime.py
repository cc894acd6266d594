"""The machine that a run uses."""

from __future__ import annotations

from typing import Literal

from pipeline.config.base import NonNegative, Positive, Precision, Section, operational


class Runtime(Section):
    """The machine that a run uses."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one. Set `cuda` to fail where there is none."""
    precision: Precision = "auto"
    """`auto` takes bf16 where the hardware has it, else fp32. Set `fp16` on older GPUs (V100, T4)."""
    processes: Positive = 1
    """Number of training and labeling processes, one per GPU; on a CPU they talk by gloo. Batch sizes must be multiples
    of it."""
    threads: NonNegative = 0
    """CPU threads per process. 0 means cores / processes, resolved once when the run is made."""
    compile: bool = False
    """Whether to torch.compile the model. Equal bits after a kill are promised only without it."""
    log_every: Positive = operational(20)
    """Steps between two lines of metrics. Every line costs one host sync."""
    checkpoint_every: Positive = operational(200)
    """Steps between two checkpoints."""
    keep_checkpoints: Positive = operational(2)
    """Number of checkpoints that are kept beside the best on val."""
