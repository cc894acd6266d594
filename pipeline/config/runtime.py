"""The machine that a run uses."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from pipeline.config.base import NonNegative, Positive, Precision, Section, operational


class Runtime(Section):
    """The machine that a run uses."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one, else the CPU. Set `cuda` to fail if there is no GPU."""
    precision: Precision = "auto"
    """Precision of forward passes. `auto` takes bf16 if the hardware has it, else fp32. Set `fp16` on older GPUs (V100,
    T4)."""
    processes: Positive = 1
    """Number of processes per machine that train and label, one per GPU; on a CPU they talk by gloo. Batch sizes must
    be multiples of nodes x processes."""
    nodes: Positive = operational(1)
    """Number of machines that train and label together, each with `processes`. The command is typed on one of them, and
    `selftrain join RUN` on the others. As many processes in all give the same bits, on however many equal machines."""
    threads: NonNegative = 0
    """CPU threads per process. 0 means cores / processes, which is resolved once, when the run is made."""
    compile: bool = False
    """Whether to torch.compile the model. With it, equal bits after a kill are not promised."""
    log_every: Positive = operational(20)
    """Steps between two lines of metrics. Each line costs one host sync. Raise it if steps take milliseconds."""
    checkpoint_every: Positive = operational(200)
    """Steps between two checkpoints. A killed training repeats the steps since the last one. Lower it if steps take
    seconds."""
    keep_checkpoints: Positive = operational(2)
    """Number of last checkpoints that are kept, beside the best one on val."""
    stall_minutes: Annotated[float, Field(ge=0)] = operational(0.0)
    """Minutes without progress after which a stage is ended, and started again under a Prefect worker. 0 waits for
    ever: some healthy stages report nothing for long, such as an evaluation of many images on a CPU, and one that is
    ended for that never gets past it. On a cluster set several times the longest evaluation, such as 60."""

    @property
    def ranks(self) -> int:
        """The number of processes on all machines together."""
        return self.nodes * self.processes

    def by_results(self) -> Self:
        """As many processes on one machine."""
        return self.model_copy(update={"processes": self.ranks, "nodes": 1})
