"""Trainings on one GPU: half precision, resume, NCCL, torch.compile."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from support.learners import MakeJob, learner_of
from support.processes import has_come_to, outputs
from support.server import free_port
from support.tiny_net import register
from support.waiting import wait_for
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import pipeline
from pipeline.files import write_bytes
from pipeline.stages.jobs import TrainJob
from pipeline.stages.ranks import Ranks
from pipeline.train.learner import Learner

pytestmark = pytest.mark.gpu
ROOT = Path(pipeline.__file__).parents[1]
CHANCE = math.log(10)
"""The loss of a network that knows nothing of ten classes."""


def on(device: torch.device, precision: str) -> str:
    """The precision, or one that the tests can be tried in on a CPU."""
    return precision if device.type == "cuda" or precision != "fp16" else "bf16"


def train(learner: Learner, job: TrainJob, steps: int) -> dict[str, float | None]:
    """Some steps; returns what the last ten of them measured, as means."""
    batches = learner.batches.from_step(0, steps)
    for step in range(steps):
        learner.update(step, islice(batches, job.training.accumulation))
        if step == steps - 11:
            learner.meter.take()
    assert learner.meter.bad_step() is None
    assert all(bool(network.is_finite()) for network in learner.networks.values())
    return learner.meter.take()


# ------------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("variant", ["student", "uda", "fixmatch", "meta, exact", "meta, adjuster"])
def test_a_training_in_half_precision_learns(
    device: torch.device, job_of: MakeJob, variant: str, precision: str, tmp_path: Path
) -> None:
    job = job_of(variant, tmp_path, precision=on(device, precision), steps=60)
    learner = learner_of(job)
    measured = train(learner, job, 60)
    loss = measured.get("labeled_loss", measured["loss"])
    if variant != "meta, adjuster":  # which learns from feedback alone
        assert loss is not None
        assert loss < 0.8 * CHANCE, measured


def test_updates_that_overflow_in_fp16_are_skipped_and_harm_nothing(
    device: torch.device, job_of: MakeJob, tmp_path: Path
) -> None:
    job = job_of("student", tmp_path, precision=on(device, "fp16"), steps=60)
    learner = learner_of(job)
    scaler, (network,) = learner.accelerator.scaler, learner.networks.values()
    if scaler is not None:  # of 2^28, gradients of the logits overflow at first
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**28})
    before = [p.detach().clone() for p in network.raw_model.parameters()]
    learner.update(0, [learner.batches.slot(0, 0)])
    if scaler is not None:
        assert all(torch.equal(p, b) for p, b in zip(network.raw_model.parameters(), before, strict=True))
        assert network.ema.num_updates == 0
    measured = train(learner, job, 60)
    assert network.ema.num_updates > 30
    loss = measured["labeled_loss"]
    assert loss is not None
    assert loss < 0.8 * CHANCE, measured


# ------------------------------------------------------------------------------------------------------ real processes


_DETERMINISTIC = "import sys, torch; torch.use_deterministic_algorithms(True, warn_only=True)"
_RUN = "from pipeline.stages.child import main; sys.exit(main())"
_ONE_RANK = "from torch import distributed; distributed.init_process_group({backend!r})"


def begin(job: TrainJob, *code: str, **variables: str) -> subprocess.Popen[bytes]:
    """Begin a training as the launcher does, on kernels that give equal bits each time."""
    write_bytes(job.out / "job.json", job.model_dump_json().encode())
    program = "; ".join([_DETERMINISTIC, *code, _RUN])
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", **variables}
    with open(job.out / "output.log", "ab") as log:
        command = [sys.executable, "-c", program, str(job.out / "job.json")]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def end(job: TrainJob, process: subprocess.Popen[bytes]) -> Path:
    """Wait for a good end."""
    assert process.wait(timeout=90) == 0, (job.out / "output.log").read_text()[-3000:]
    return job.out


def test_a_resume_on_the_same_gpu_ends_with_the_same_bits(
    device: torch.device, job_of: MakeJob, tmp_path: Path
) -> None:
    """With deterministic kernels. With others, images, order and noise are the same, and weights differ by rounding."""
    cases = []
    for name, variant, precision in (("student", "student", "bf16"), ("meta", "meta, exact", "fp16")):
        kind = on(device, precision)
        whole, cut = (job_of(variant, tmp_path / name / which, precision=kind) for which in ("whole", "cut"))
        cases.append((whole, cut, begin(whole), begin(cut)))
    resumed = [kill_and_begin_again(cut, killed) for _, cut, _, killed in cases]
    for (whole, cut, undisturbed, _), again in zip(cases, resumed, strict=True):
        assert outputs(end(cut, again)) == outputs(end(whole, undisturbed))


def kill_and_begin_again(job: TrainJob, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    wait_for(lambda: has_come_to(job, 15) or process.poll() is not None)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (job.out / "output.log").read_text()[-3000:]
    assert not (job.out / "model.safetensors").exists()
    assert list(job.out.glob("checkpoints/step-*.pt"))
    return begin(job)


def test_one_rank_trains_in_a_group_as_it_does_alone(device: torch.device, job_of: MakeJob, tmp_path: Path) -> None:
    """With the process group and the flags of several; Accelerate wraps no model of one rank (see the next test)."""
    alone, group = (job_of("student", tmp_path / name, precision="fp32") for name in ("alone", "group"))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = begin(alone), begin(group, _ONE_RANK.format(backend=backend), **ranks, **address)
    folders = [end(job, process) for job, process in zip((alone, group), processes, strict=True)]
    first = [json.loads((folder / "metrics.jsonl").read_text().splitlines()[0]) for folder in folders]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-2)


@pytest.fixture
def group(device: torch.device) -> Iterator[Ranks]:
    """A group of this process alone, which takes itself for one of two: so it does talk."""
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=distributed.HashStore(), rank=0, world_size=1
    )
    yield Ranks(0, 2, distributed.new_group(backend="gloo"))
    distributed.destroy_process_group()


def test_gradients_that_pass_through_ddp_are_those_without_it(
    device: torch.device, group: Ranks, job_of: MakeJob, tmp_path: Path
) -> None:
    """On a GPU their all-reduce is NCCL's, which several GPUs need."""
    model = learner_of(job_of("student", tmp_path, precision="fp32")).model.raw_model
    assert device.type != "cuda" or "nccl" in str(distributed.get_backend_config())
    wrapped = DistributedDataParallel(copy.deepcopy(model), [device] if device.type == "cuda" else None)
    images = torch.randn(16, 3, 8, 8, device=device)
    for network in (model, wrapped):
        torch.manual_seed(0)  # of dropout and stochastic depth
        network.train()(images).logsumexp(1).mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients
    for name, parameter in wrapped.module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_ranks_average_on_their_device_and_vote_on_their_host(device: torch.device, group: Ranks) -> None:
    tensors = [torch.full((3, 2), 4.0, device=device), torch.tensor([2.0], device=device)]
    group.average(tensors)
    assert [t.flatten().tolist() for t in tensors] == [[2.0] * 6, [1.0]]
    assert group.any(True)
    assert not group.any(False)


# ------------------------------------------------------------------------------------------------------- torch.compile


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_a_compiled_model_learns(device: torch.device, job_of: MakeJob, tmp_path: Path) -> None:
    """The last test, because it takes the longest."""
    register()
    tiny = {"model": "selftrain_tiny", "model_args": {}, "dropout": 0.0, "stochastic_depth": 0.0}
    job = job_of("student", tmp_path, precision="bf16", steps=60, runtime={"compile": True}, **tiny)
    learner = learner_of(job)
    assert learner.model.model is not learner.model.raw_model
    measured = train(learner, job, 60)
    assert measured["labeled_loss"] is not None
    assert measured["labeled_loss"] < 0.8 * CHANCE, measured
