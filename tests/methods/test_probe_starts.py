"""Methods that train one network begin at the head of a probe, as docs/methods/index.md says it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.encoders import embed_job, probe_job, probing
from support.processes import method_job
from support.saved import save_random

from pipeline.config import Config, parse
from pipeline.models.format import load_model
from pipeline.stages.preamble import run_stage


@pytest.fixture(scope="module")
def probe(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage of a probe on a network of random weights."""
    folder = tmp_path_factory.mktemp("probe")
    training = probing(save_random(folder / "encoder.safetensors", tuple("0123456789")))
    run_stage(embed_job(digits, folder / "features", training))
    run_stage(probe_job(digits, folder / "probe", training, folder / "features"))
    return folder / "probe"


@pytest.mark.parametrize("method", ["uda", "fixmatch", "meta"])
def test_every_method_starts_from_the_head_of_a_probe(method: str, digits: Config, probe: Path, tmp_path: Path) -> None:
    """With next to no learning rate, what it ends with is what it began with."""
    raw = digits.model_dump(mode="json", include={"data", "runtime"})
    begun, info = load_model(probe)
    network = {"model": info.architecture, "model_args": info.model_args}
    network |= {"start": {"model": str(probe), "mode": "init"}, "optimizer": {"lr": 1e-7}, "ema_decay": 0}
    student = {
        **network,
        "image_size": info.input_size[-1],
        "steps": 2,
        "evaluations": 1,
        "batch_size": 20,
        "unlabeled_ratio": 2,
    }
    others = {"teacher": network, "meta": {"student_wait": 0}} if method == "meta" else {}
    config = parse(Config, {**raw, "method": method, "student": student, **others}, "test")
    run_stage(method_job(config, tmp_path / "train"))
    ended, _ = load_model(tmp_path / "train")
    heads = [model.get_classifier().weight for model in (begun, ended)]  # type: ignore[operator,union-attr]
    assert heads[0].std() > 0
    torch.testing.assert_close(heads[1], heads[0], atol=1e-4, rtol=1e-3)
