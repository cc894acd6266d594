"""Insertion: a deeper PolyNet begins as the function of a smaller one, bit for bit, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.processes import run, train_job
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, NetworkSettings, Start, Training, changed
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.format import ModelInfo, read_state, save_model
from pipeline.models.insertion import places
from pipeline.models.weights import load_start
from pipeline.train.stage import train_inputs

CLASSES = ("a", "b", "c")
FORM: dict[str, Any] = {"width": 0.05, "stem_stride": 1}


def network(*stages: str, num_classes: int = 3, **form: Any) -> nn.Module:
    """A PolyNet with weights and statistics of which none is neutral, as a training leaves them."""
    names = ("stage_a", "stage_b", "stage_c")
    model = build("polynet_small", num_classes, model_args={**FORM, **form, **dict(zip(names, stages, strict=True))})
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norms" in name and "num_batches" not in name:
                tensor.uniform_(0.5, 1.5)
    return model


def saved(model: nn.Module, folder: Path, *stages: str, classes: tuple[str, ...] = CLASSES, **form: Any) -> Path:
    """The model as an exported file, which says what it is."""
    args = {**FORM, **form, **dict(zip(("stage_a", "stage_b", "stage_c"), stages, strict=True))}
    training = Training(model="polynet_small", model_args=args, image_size=8)
    save_model(folder / "model.safetensors", model.state_dict(), ModelInfo.of(training, training, classes, {}))
    return folder / "model.safetensors"


def started(source: Path, *stages: str, classes: tuple[str, ...] = CLASSES, **form: Any) -> nn.Module:
    """A new network that starts from a file by insertion."""
    args = {**FORM, **form, **dict(zip(("stage_a", "stage_b", "stage_c"), stages, strict=True))}
    model = build("polynet_small", len(classes), model_args=args)
    start = Start(model=str(source), mode="insert")
    load_start(model, NetworkSettings(model="polynet_small", model_args=args, start=start), classes)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("ir", "ir", "ir"), ("ir x 2", "ir x 3", "ir x 2")),
        (("ir", "ir x 2", "ir"), ("2-way", "poly-2, mpoly-2", "3-way")),
        (("2-way", "poly-2", "mpoly-2"), ("3-way", "poly-3", "mpoly-3")),
        (("2-way", "2-way x 2", "poly-3"), ("2-way x 3", "poly-3 2-way x 2", "poly-3 2-way")),
        (("2-way", "poly-3", "ir"), ("2-way", "poly-3", "ir")),
    ],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_deeper_network_begins_as_the_function_of_the_smaller_one(
    tmp_path: Path, images: Tensor, old: tuple[str, str, str], new: tuple[str, str, str], mode: str
) -> None:
    """Bit for bit, with the statistics of the batch as well."""
    smaller = network(*old)
    deeper = started(saved(smaller, tmp_path, *old), *new)
    for model in (smaller, deeper):
        model.train(mode == "train")
    assert torch.equal(deeper(images), smaller(images))


def test_new_paths_learn_in_spite_of_their_zeros(tmp_path: Path, images: Tensor) -> None:
    """A path that reads the output of a new one begins a step later: until then it sees nothing but zeros."""
    old = ("2-way", "2-way x 2", "poly-3")
    deeper = started(saved(network(*old), tmp_path, *old), "2-way x 3", "poly-3 2-way x 2", "poly-3, mpoly-2").train()
    ends = [p for name, p in deeper.named_parameters() if "project" in name and name.endswith("norms.0.weight")]
    begun = [p for p in ends if not p.any()]
    optimizer = torch.optim.SGD(deeper.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(deeper(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert len(begun) == 2 * 2 + 2 * 3 + 2
    assert all(p.any() for p in begun)


def test_modules_of_the_smaller_network_keep_their_order_and_alternate_with_new_ones() -> None:
    assert places(["ir"] * 3, ["ir"] * 6) == [0, 2, 4]
    assert places(["2-way"] * 2, ["poly-3", "2-way"] * 2) == [1, 3]
    assert places(["ir", "2-way"], ["ir", "poly-3", "ir", "3-way"]) == [0, 3]
    assert places(["ir"] * 4, ["2-way"] * 4) == [0, 1, 2, 3]
    assert places(["ir"] * 2, ["ir"] * 5) == [0, 2]
    assert places([], ["ir"]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["ir"] * 3, ["ir"] * 2),
        (["poly-3"], ["poly-2"]),
        (["poly-2"], ["mpoly-3", "3-way"]),
        (["2-way", "poly-3"], ["poly-3", "2-way"]),
    ],
)
def test_modules_without_a_place_are_found(old: list[str], new: list[str]) -> None:
    assert places(old, new) is None


def test_the_classifier_is_taken_by_the_names_of_classes(tmp_path: Path, images: Tensor) -> None:
    stages = ("ir", "ir", "ir")
    smaller = network(*stages).eval()
    source = saved(smaller, tmp_path, *stages)
    permuted = started(source, "ir x 2", *stages[1:], classes=("c", "a", "b")).eval()
    assert torch.equal(permuted(images), smaller(images)[:, [2, 0, 1]])
    other = started(source, "ir x 2", *stages[1:], classes=("a", "b", "c", "d"))
    assert other(images).shape == (4, 4)
    assert torch.equal(other.state_dict()["stem.0.conv.weight"], smaller.state_dict()["stem.0.conv.weight"])


@pytest.mark.parametrize(
    ("new", "form", "message"),
    [
        (("ir", "ir", "ir"), {"width": 0.1}, r"`model_args`: width is 0\.1, but that of .* is 0\.05, .*; set"),
        (("ir", "ir", "ir"), {"residual_scale": 1.0}, r"residual_scale is 1, but that of .* is 0\.3"),
        (("ir", "ir", "ir"), {}, r"`model_args\.stage_b`: ir has no place for .* which are ir, ir, in their order"),
    ],
)
def test_a_start_that_does_not_fit_is_explained(
    tmp_path: Path, new: tuple[str, str, str], form: dict[str, float], message: str
) -> None:
    old = ("ir", "ir x 2", "ir")
    source = saved(network(*old), tmp_path, *old)
    with pytest.raises(UserError, match=message):
        started(source, *new, **form)


def test_a_start_of_another_kind_is_explained(tmp_path: Path) -> None:
    stages = ("ir", "ir", "ir")
    save_file(network(*stages).state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors does not say which modules it has"):
        started(tmp_path / "bare.safetensors", *stages)
    training = Training(model="resnet9", model_args={"width": 2}, image_size=8)
    info = ModelInfo.of(training, training, CLASSES, {})
    save_model(tmp_path / "other.safetensors", build("resnet9", 3, model_args={"width": 2}).state_dict(), info)
    with pytest.raises(UserError, match=r"`start\.mode`: insert .* here ResNet9 is to start PolyNet; set model"):
        started(tmp_path / "other.safetensors", *stages)
    source, model = saved(network(*stages), tmp_path, *stages), build("resnet9", 3)
    settings = NetworkSettings(model="resnet9", start=Start(model=str(source), mode="insert"))
    with pytest.raises(UserError, match="here PolyNet is to start ResNet9"):
        load_start(model, settings, CLASSES)


@pytest.mark.parametrize(("theirs", "ours"), [("silu", "silu"), ("silu", None), (None, "prelu")])
def test_without_relu_a_new_module_would_change_the_function_so_it_is_refused(
    tmp_path: Path, theirs: str | None, ours: str | None
) -> None:
    """SiLU of what a SiLU gave is another number. The config refuses its own, and the start that of its weights."""
    stages = ("ir", "ir", "ir")
    source = saved(network(*stages, **active(theirs)), tmp_path, *stages, **active(theirs))
    if ours is not None:
        with pytest.raises(ValueError, match=rf"activation is {ours}, but with start\.mode: insert .*; set it to null"):
            NetworkSettings(activation=ours, start=Start(model=str(source), mode="insert"))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"activation is {ours}, but with start\.mode: insert"):
            NetworkSettings(model_args=active(ours), start=Start(model=str(source), mode="insert"))
    if theirs is not None:
        with pytest.raises(
            UserError, match=r"`activation`: that of .*model\.safetensors is SiLU, but with start\.mode:"
        ):
            started(source, "ir x 2", *stages[1:])


def test_relu_by_its_name_is_relu(tmp_path: Path, images: Tensor) -> None:
    stages = ("ir", "ir", "ir")
    smaller = network(*stages).eval()
    deeper = started(saved(smaller, tmp_path, *stages), "ir x 2", *stages[1:], activation="relu").eval()
    assert torch.equal(deeper(images), smaller(images))


def active(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"activation": name}


@pytest.mark.process
def test_a_training_starts_by_insertion_and_its_record_says_from_what(digits: Config, tmp_path: Path) -> None:
    old, classes = ("ir", "ir", "ir"), tuple(map(str, range(10)))
    source = saved(network(*old, num_classes=10), tmp_path, *old, classes=classes)
    still = {"optimizer": {"lr": 1e-12, "weight_decay": 0.0}, "steps": 2, "warmup_steps": 0, "evaluations": 1}
    args = {**FORM, "stage_a": "ir", "stage_b": "poly-2 ir", "stage_c": "ir"}
    net = {"model": "polynet_small", "model_args": args, "start": {"model": str(source), "mode": "insert"}}
    training = Training.model_validate({**digits.teacher.model_dump(), **still, **net})
    job = train_job(digits, tmp_path / "train", training=training)
    inits = changed(job, training=changed(training, start=Start(model=str(source))))
    assert train_inputs(job).config != train_inputs(inits).config
    assert train_inputs(job).inputs == train_inputs(inits).inputs
    out = run(job)
    trained, original = read_state(out), read_state(source)
    for name in ("stages.1.0.inceptions.0.branches.0.1.conv.weight", "fc.weight"):
        assert torch.allclose(trained[name], original[name], atol=1e-6)
    assert trained["stages.1.0.inceptions.0.project.1.norms.0.weight"].abs().max() < 1e-6
    lineage = json.loads((out / "model.json").read_text())["lineage"]
    assert lineage["start"] == train_inputs(job).inputs["start"]
