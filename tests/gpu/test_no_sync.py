"""No step of any learner waits for its device (invariant 8)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.learners import VARIANTS, MakeJob, learner_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.stages.jobs import TrainJob
from pipeline.train.learner import Learner

STEPS = 2


def take_steps(
    learner: Learner, job: TrainJob, checked: contextlib.AbstractContextManager[Any], *, warm_up: int = 4
) -> None:
    """Some steps, and then some more within `checked`."""
    batches = learner.batches.from_step(0, warm_up + STEPS)
    for step in range(warm_up):
        learner.update(step, islice(batches, job.training.accumulation))
    with checked:
        for step in range(warm_up, warm_up + STEPS):
            learner.update(step, islice(batches, job.training.accumulation))


# --------------------------------------------------------------------------- on a device without values, on any machine


class Transfers(TorchDispatchMode):
    """Raises where values move between host and device in a way that the host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        aten = torch.ops.aten
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is aten._to_copy.default:
            waits = result.device != args[0].device and not kwargs.get("non_blocking")
        else:  # a number from the host travels with the kernel
            waits = len({tensor.device for tensor in tensors if tensor.ndim or func is aten.copy_.default}) > 1
        assert not waits, f"the host waits for the transfer in {func}"
        return result


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_needs_no_value_of_a_tensor_on_its_device(
    job_of: MakeJob, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on torch's `meta` device have shapes and no values, so that whatever asks for one raises. This finds most
    of what a GPU would have to wait for, where there is none."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # which knows no `meta`
    job = job_of(variant, tmp_path, device="cpu")
    with on_meta():
        take_steps(learner_of(job), job, Transfers(), warm_up=0)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Within, Accelerate's device is `meta`."""
    from accelerate.state import PartialState

    PartialState(cpu=True)
    PartialState._shared_state["device"] = torch.device("meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a no-op.*", category=UserWarning)  # loading weights
        yield


# ------------------------------------------------------------------------------------------------------------- on a GPU


@contextlib.contextmanager
def no_sync(device: torch.device) -> Iterator[None]:
    """Within, whatever waits for the GPU raises. On a CPU, nothing does."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_does_not_wait_for_the_gpu(
    device: torch.device, job_of: MakeJob, variant: str, precision: str, tmp_path: Path
) -> None:
    job = job_of(variant, tmp_path, precision=precision)
    learner = learner_of(job)
    take_steps(learner, job, no_sync(device))
    assert learner.meter.bad_step() is None


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["student", "uda", "fixmatch", "meta, exact"])
def test_a_step_in_fp16_waits_once_per_update_for_the_scaler(
    device: torch.device, job_of: MakeJob, variant: str, tmp_path: Path
) -> None:
    """The scaler must know on the host whether to skip an update."""
    job = job_of(variant, tmp_path, precision="fp16" if device.type == "cuda" else "fp32")
    learner = learner_of(job)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_steps(learner, job, counted_syncs(device), warm_up=12)  # some updates are skipped at first
    syncs = [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    assert len(syncs) <= STEPS * len(learner.networks), {str(warning.message) for warning in syncs}


@contextlib.contextmanager
def counted_syncs(device: torch.device) -> Iterator[None]:
    """Within, whatever waits for the GPU warns."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
