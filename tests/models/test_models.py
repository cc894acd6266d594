"""Architectures: ours are in timm, parts of them freeze, and exported files load in plain timm."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from support.command import ROOT, environment
from support.processes import run, train_job
from torch import nn

from pipeline.config import Config, Training
from pipeline.errors import UserError
from pipeline.evaluate.predictor import Predictor
from pipeline.models import build, compat, list_own_models, num_frozen, set_trainable
from pipeline.models.format import export_model, find_weights, load_model, model_digest
from pipeline.models.weights import init_from

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch


# ------------------------------------------------------------------------------------------------------ architectures


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("wide_resnet10_1", 8, 0.08),
        ("wide_resnet16_2", 32, 0.69),
        ("wide_resnet28_2", 32, 1.47),
        ("resnet9", 32, 1.16),
        ("polynet_small", 32, 1.51),
    ],
)
def test_our_architectures_come_from_timm_in_their_sizes(name: str, size: int, millions: float) -> None:
    model = timm.create_model(name, num_classes=7).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.015)
    assert name in list_own_models()


def test_list_own_models_holds_no_model_of_timm() -> None:
    assert "resnet18" not in list_own_models()


def test_wide_resnet_is_that_of_meta_pseudo_labels() -> None:
    model = build("wide_resnet28_2", 10)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.01, 1e-3)}
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]) == 25
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("name", "first"), [("wide_resnet28_2", 0.0), ("resnet9", 0.1)])
def test_stochastic_depth_grows_linearly_to_its_rate_at_the_last_block(name: str, first: float) -> None:
    model = build(name, 10, stochastic_depth=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    steps = torch.linspace(first, 0.3, len(rates)).tolist()
    assert rates == pytest.approx(steps)


def test_dropout_and_stochastic_depth_are_off_in_eval_mode() -> None:
    model = build("wide_resnet10_1", 10, dropout=0.5, stochastic_depth=0.5)
    images = torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "wide_resnet28"}, r"no architecture 'wide_resnet28', did you mean `wide_resnet28_2`\?"),
        ({"architecture": "resnet10t", "model_args": {"depht": 3}}, r"resnet10t cannot be built with \{'depht': 3\}"),
        ({"architecture": "vgg11", "stochastic_depth": 0.1}, r"`stochastic_depth`|cannot be built"),
    ],
)
def test_what_cannot_be_built_is_explained(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**{"num_classes": 10, **arguments})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ freezing


@pytest.mark.parametrize("name", ["wide_resnet10_1", "resnet9", "polynet_small", "resnet10t"])
def test_frozen_layers_get_no_gradient_and_their_batchnorm_no_update(name: str) -> None:
    model = build(name, 10).train()
    set_trainable(model, 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    frozen = {k for k, p in model.named_parameters() if not p.requires_grad}
    assert 0 < num_frozen(model) < sum(p.numel() for p in model.parameters())
    assert all(p.grad is None for k, p in model.named_parameters() if k in frozen)
    modules = {k.rpartition(".")[0] for k in frozen}
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] in modules:
            assert torch.equal(value, before[key]), key
        elif key.endswith("running_mean"):
            assert not torch.equal(value, before[key]), key


def test_nothing_is_frozen_unless_asked() -> None:
    model = build("wide_resnet10_1", 10).train()
    set_trainable(model, 0)
    assert num_frozen(model) == 0
    assert all(m.training for m in model.modules())


def test_a_model_that_does_not_describe_its_layers_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"`frozen_layers`: Linear does not describe its layers; set it to 0"):
        set_trainable(nn.Linear(2, 2), 1)


# ----------------------------------------------------------------------------------------------------- torchvision


def test_missing_operators_of_torchvision_are_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, name: str, kind: str) -> None:
            self.name, self.defined = name, list[str]()

        def define(self, schema: str) -> None:
            self.defined.append(schema.partition("(")[0])

    monkeypatch.setattr(compat.torch.library, "Library", Library)
    monkeypatch.setattr(compat, "_LIBRARY", None)
    monkeypatch.setattr(compat, "_library_is_broken", lambda: False)
    assert not compat.declare_missing_ops()
    monkeypatch.setattr(compat, "_library_is_broken", lambda: True)
    assert compat.declare_missing_ops()
    assert compat._LIBRARY.defined == ["nms", "qnms"]  # type: ignore[union-attr]
    assert not compat.declare_missing_ops()


# -------------------------------------------------------------------------------------------------------------- export


@pytest.mark.process
@pytest.mark.parametrize(
    ("architecture", "model_args", "first_line"),
    [
        ("wide_resnet10_1", {}, "import pipeline.models"),
        ("polynet_small", {"stage_b": "poly-2 mpoly-2", "width": 0.05}, "import pipeline.models"),
        ("resnet10t", {}, ""),
    ],
)
def test_an_exported_file_gives_the_same_logits_in_timm(
    digits: Config, tmp_path: Path, architecture: str, model_args: dict[str, object], first_line: str
) -> None:
    """timm's architectures need nothing of ours; ours need one import."""
    short = {
        "model": architecture,
        "model_args": model_args,
        "image_size": 32,
        "steps": 2,
        "warmup_steps": 0,
        "batch_size": 4,
        "evaluations": 1,
    }
    training = Training.model_validate({**digits.teacher.model_dump(), **short, "weak": {"crop": "none"}})
    stage = run(train_job(digits, tmp_path / "train", training=training))
    export_model(stage, tmp_path / "model.safetensors")
    model, info = load_model(stage)
    images = torch.randn(3, 3, *info.input_size[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.save((images, model(images)), tmp_path / "expected.pt")
    check = f"""
{first_line or ops_only()}
import json, sys, torch, timm
assert {bool(first_line)} or "pipeline.models" not in sys.modules
info = json.load(open("model.json"))
args = dict(num_classes=len(info["classes"]), checkpoint_path="model.safetensors", **info["model_args"])
model = timm.create_model(info["architecture"], **args).eval()
images, expected = torch.load("expected.pt")
torch.set_num_threads(1)
with torch.inference_mode():
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)  # another process may pick other kernels
"""
    command = [sys.executable, "-W", "ignore", "-c", check]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def ops_only() -> str:
    """What lets timm be imported beside a CPU-only torch; users of the CUDA build need not even this."""
    return Path(compat.__file__).read_text() + "\ndeclare_missing_ops()"


def test_export_refuses_to_overwrite_another_model(teacher: Path, student: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    export_model(teacher, out)
    export_model(teacher, out)  # the same again is no harm
    with pytest.raises(UserError, match="exists and holds another model"):
        export_model(student, out)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        export_model(student, tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["birds.safetensors", "birds.json"])
def test_export_refuses_a_folder_in_the_place_of_its_files(teacher: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is not a file; choose another name"):
        export_model(teacher, tmp_path / "birds.safetensors")


def test_export_refuses_to_overwrite_other_json(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "birds.json").write_text('{"mine": true}')
    with pytest.raises(UserError, match=r"birds\.json exists and is not of this model"):
        export_model(teacher, tmp_path / "birds.safetensors")
    assert (tmp_path / "birds.json").read_text() == '{"mine": true}'
    assert not (tmp_path / "birds.safetensors").exists()


def test_a_digest_tells_models_apart_that_see_images_otherwise(teacher: Path, tmp_path: Path) -> None:
    """Equal weights under another normalization give other labels."""
    export_model(teacher, tmp_path / "m.safetensors")
    assert model_digest(tmp_path / "m.safetensors") == model_digest(teacher)
    info = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps({**info, "mean": [0.5, 0.5, 0.5]}))
    assert model_digest(tmp_path / "m.safetensors") != model_digest(teacher)
    (tmp_path / "m.json").write_text(json.dumps({**info, "crop_pct": 0.875}))
    assert model_digest(tmp_path / "m.safetensors") != model_digest(teacher)
    (tmp_path / "m.json").write_text(json.dumps({**{k: v for k, v in info.items() if k != "crop_pct"}, "metrics": {}}))
    assert model_digest(tmp_path / "m.safetensors") == model_digest(teacher)


def test_model_json_says_all_that_is_needed_to_use_it(teacher: Path, digits: Config) -> None:
    info = json.loads((teacher / "model.json").read_text())
    assert info["schema"] == 1
    assert info["architecture"] == "wide_resnet10_1"
    assert info["classes"] == [str(n) for n in range(10)]
    assert info["input_size"] == [3, 8, 8]
    assert info["mean"] == list(digits.teacher.mean)
    assert info["metrics"]["val"] == json.loads((teacher / "evaluation-val.json").read_text())
    assert info["lineage"]["role"] == "teacher"


def test_a_model_is_found_in_stage_file_and_run(teacher: Path, tmp_path: Path) -> None:
    weights = teacher / "model.safetensors"
    assert find_weights(teacher) == find_weights(weights) == weights
    (tmp_path / "result.json").write_text(json.dumps({"final": {"model_dir": str(teacher)}}))
    assert find_weights(tmp_path) == weights
    with pytest.raises(UserError, match="expected a run, a train stage, a registry, an exported"):
        find_weights(tmp_path.parent)


def test_init_from_copies_what_fits_and_tells_how_much() -> None:
    source, target = build("wide_resnet10_1", 10), build("wide_resnet10_1", 7)
    assert init_from(target, source.state_dict(), "x") == len(source.state_dict()) - 2
    assert torch.equal(target.stem.weight, source.stem.weight)  # type: ignore[union-attr,arg-type]


def test_a_predictor_averages_image_and_mirror(teacher: Path) -> None:
    model, info = load_model(teacher)
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    mirrored = images.flip(2)
    plain = Predictor(model, info, device=torch.device("cpu"), precision="fp32", flip=False)
    both = Predictor(model, info, device=torch.device("cpu"), precision="fp32", flip=True)
    expected = (plain.logits(images).softmax(1) + plain.logits(mirrored).softmax(1)) / 2
    torch.testing.assert_close(both.logits(images).softmax(1), expected)


@pytest.mark.parametrize(
    "name", ["checkpoint_path", "pretrained", "features_only", "in_chans", "pretrained_cfg_overlay"]
)
def test_arguments_that_a_classifier_does_not_have_are_refused(name: str) -> None:
    """timm would unpickle the file at `checkpoint_path`, which may come with somebody's model.json."""
    with pytest.raises(UserError, match=f"`model_args`: {name} is no argument of a network"):
        build("resnet10t", 3, model_args={name: "evil.pth"})


class Evil:
    """What runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_no_timm_that_is_allowed_unpickles_a_checkpoint(tmp_path: Path) -> None:
    """So that whoever hands arguments to it by a way that we do not know runs no code either."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "timm>=1.0.26" in project["dependencies"], "1.0.25 and before it unpickle whatever is in a checkpoint_path"
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(RuntimeError, match="weights_only"):
        timm.create_model("resnet10t", checkpoint_path=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
