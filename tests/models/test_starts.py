"""Weights that a training starts from: which files, how much of them must fit, and what is said when they do not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.processes import run, train_job
from torch import nn

from pipeline.config import Config, NetworkSettings, Start, Training
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.format import ModelInfo, read_state, save_model
from pipeline.models.weights import init_from, load_start, start_state, with_classes

import timm  # isort: skip - after pipeline.models, which lets it be imported beside a CPU-only torch

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What timm's users have: weights and no more."""
    path = tmp_path_factory.mktemp("timm") / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=10).state_dict(), path)
    return path


def start_from(digits: Config, out: Path, source: Path | str, mode: str, **changes: object) -> Path:
    short = {"model": "resnet10t", "model_args": {}, "image_size": 32, "steps": 1, "warmup_steps": 0, "batch_size": 4}
    lr = {"optimizer": {"lr": 1e-12, "weight_decay": 0.0}, "evaluations": 1, "weak": {"crop": "none"}}
    values = {**digits.teacher.model_dump(), **short, **lr, "start": Start(model=str(source), mode=mode), **changes}  # type: ignore[arg-type]
    return run(train_job(digits, out, training=Training.model_validate(values)))


# ------------------------------------------------------------------------------------------------- how much must fit


def test_a_classifier_of_other_classes_is_left_out_silently(caplog: pytest.LogCaptureFixture) -> None:
    target = build("wide_resnet10_1", 1000)  # of whose weights the classifier is nearly half
    assert init_from(target, build("wide_resnet10_1", 10).state_dict(), "x") > 20
    assert caplog.text == ""


def test_weights_of_another_architecture_are_refused_and_some_are_named() -> None:
    """They share a few names and shapes, which used to be taken and the rest left at random."""
    target = build("wide_resnet16_2", 10)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(
        UserError, match=r"teacher has \d+% of the weights of this WideResNet \(not: .* and \d+ more\);"
    ):
        init_from(target, build("wide_resnet10_1", 10).state_dict(), "teacher")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("name", ["stem.weight", "norm.running_mean"])
def test_what_would_stay_random_is_an_error_unless_it_is_allowed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = build("wide_resnet10_1", 10).state_dict()
    del source[name]
    with pytest.raises(UserError, match=rf"teacher has 99% .* \(not: {name}\); .* start\.allow_random to true"):
        init_from(build("wide_resnet10_1", 10), source, "teacher")
    with caplog.at_level(logging.WARNING, "selftrain"):
        assert init_from(build("wide_resnet10_1", 10), source, "teacher", allow_random=True) == len(source)
    assert f"teacher lacks {name}, which stay at random (start.allow_random)" in caplog.text


def test_weights_of_which_none_fits_are_no_start_even_if_random_ones_are_allowed() -> None:
    with pytest.raises(UserError, match="has 0% of the weights of this ResNet9"):
        init_from(build("resnet9", 10), build("resnet10t", 10).state_dict(), "teacher", allow_random=True)


def test_pretrained_weights_need_no_classifier() -> None:
    """Those of self-supervised trainings have none."""
    source = build("test_vit", 10).state_dict()
    source = {name: tensor for name, tensor in source.items() if not name.startswith("head.")}
    assert init_from(build("test_vit", 7), source, "dino") == len(source)


# ------------------------------------------------------------------------------------------------- of another size

SWIN = {"embed_dim": 24}  # its 3 to 24 heads have 8 channels each


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's filters have some
@pytest.mark.parametrize(
    ("name", "small", "size", "resampled"),
    [
        ("test_vit", {}, 96, "pos_embed"),
        ("swin_tiny_patch4_window7_224", SWIN, 64, "layers.2.blocks.0.attn.relative_position_bias_table"),
        ("beit_base_patch16_224", {"embed_dim": 24, "depth": 1}, 96, "blocks.0.attn.relative_position_bias_table"),
        ("deit3_small_patch16_224", {"embed_dim": 24, "depth": 1}, 64, "pos_embed"),
    ],
)
def test_a_start_of_another_size_is_resampled_as_timm_does(
    name: str, small: dict[str, int], size: int, resampled: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=10, **small)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter)  # position embeddings may be zeros
    save_file(original.state_dict(), tmp_path / "original.safetensors")
    start = Start(model=str(tmp_path / "original.safetensors"))
    settings = NetworkSettings(model=name, model_args={**small, "img_size": size}, start=start)
    model = build(name, 7, model_args=settings.model_args)
    load_start(model, settings)
    overlay = {"file": str(tmp_path / "original.safetensors"), "num_classes": 10}
    reference = timm.create_model(
        name, pretrained=True, num_classes=7, pretrained_cfg_overlay=overlay, **settings.model_args
    ).state_dict()
    for key, tensor in model.state_dict().items():
        if "head" not in key:
            assert torch.equal(tensor, reference[key]), key
    assert model.state_dict()[resampled].shape != original.state_dict()[resampled].shape


def test_weights_that_timm_cannot_fit_are_refused(tmp_path: Path) -> None:
    save_file(build("resnet10t", 10).state_dict(), tmp_path / "other.safetensors")
    settings = NetworkSettings(model="test_vit", start=Start(model=str(tmp_path / "other.safetensors")))
    with pytest.raises(
        UserError, match=r"`start\.model`: .*other\.safetensors .*set model and model_args to what it was"
    ):
        load_start(build("test_vit", 10), settings)


# -------------------------------------------------------------------------------------------------------- classes

ANIMALS = ("ant", "bee", "cat")


@pytest.fixture
def of_animals(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[torch.nn.Module, NetworkSettings]:
    """A model that knows animals, and the settings of a training that starts from it."""
    name, arguments = request.param
    model = build(name, 3, model_args=arguments).eval()
    for name_, parameter in model.named_parameters():
        if name_.endswith("bias"):
            torch.nn.init.normal_(parameter)
    values = {"architecture": name, "model_args": arguments, "classes": ANIMALS, "input_size": (3, 32, 32)}
    info = ModelInfo(**values, mean=(0.5,) * 3, std=(0.5,) * 3, metrics={}, lineage={})  # type: ignore[arg-type]
    save_model(tmp_path / "animals.safetensors", model.state_dict(), info)
    start = Start(model=str(tmp_path / "animals.safetensors"))
    return model, NetworkSettings(model=name, model_args=arguments, start=start)


TINY_VIT = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
every_head = pytest.mark.parametrize(
    "of_animals",
    [
        ("wide_resnet10_1", {}),
        ("resnet9", {"width": 8}),
        ("test_efficientnet", {}),
        ("deit_tiny_distilled_patch16_224", TINY_VIT),
    ],
    indirect=True,
    ids=["wide_resnet", "resnet9", "efficientnet", "two heads"],
)
Animals = tuple[torch.nn.Module, NetworkSettings]


@every_head
@pytest.mark.parametrize("ours", [ANIMALS, ("cat", "ant", "bee")])
def test_a_classifier_of_the_same_classes_is_taken_by_name(of_animals: Animals, ours: tuple[str, ...]) -> None:
    """It used to be taken by place, so that cats were ants."""
    theirs, settings = of_animals
    model = build(settings.model, 3, model_args=settings.model_args)
    load_start(model, settings, ours)
    images = torch.randn(4, 3, 32, 32)
    columns = [ANIMALS.index(name) for name in ours]
    torch.testing.assert_close(model.eval()(images), theirs(images)[:, columns])


@every_head
def test_a_classifier_of_other_classes_stays_at_random_and_says_so(
    of_animals: Animals, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, settings = of_animals
    model = build(settings.model, 3, model_args=settings.model_args)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        load_start(model, settings, ("ant", "bee", "dog"))
    assert "animals.safetensors knows other classes, so the classifier begins at random" in caplog.text
    taken = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, theirs.state_dict()[name])}
    random = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {name.rpartition(".")[0] for name in random - taken} <= {"fc", "classifier", "head", "head_dist"}
    assert before.keys() - taken == random - taken != set()


def test_a_classifier_whose_place_is_not_known_is_refused() -> None:
    linear = nn.Linear(2, 3)
    with pytest.raises(UserError, match=r"`start\.model`: x knows other classes, or .* give it get_classifier"):
        with_classes(linear, linear.state_dict(), "x", ANIMALS, ANIMALS[::-1])


# ---------------------------------------------------------------------------------------------------- which files


@pytest.mark.parametrize("mode", ["use", "init"])
def test_a_file_of_timm_needs_no_json(digits: Config, timm_file: Path, tmp_path: Path, mode: str) -> None:
    out = start_from(digits, tmp_path / "train", timm_file, mode)
    taken, given = read_state(out), read_state(timm_file)
    assert all(torch.allclose(taken[k], given[k], atol=1e-6) for k in given if k.endswith("weight"))
    info = json.loads((out / "model.json").read_text())
    assert (info["architecture"], info["input_size"]) == ("resnet10t", [3, 32, 32])
    assert info["classes"] == [str(n) for n in range(10)]


def test_a_pth_file_is_read_without_running_code_of_it(timm_file: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": read_state(timm_file)}, tmp_path / "resnet10t.pth")
    state = start_state(str(tmp_path / "resnet10t.pth"))
    assert all(torch.equal(v, state[k]) for k, v in read_state(timm_file).items())
    torch.save({"state_dict": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth is not a readable file of PyTorch weights"):
        start_state(str(tmp_path / "code.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth is not a readable file of PyTorch weights"):
        start_state(str(tmp_path / "text.pth"))


def test_a_file_of_other_classes_cannot_be_used_as_it_is(digits: Config, tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(UserError, match=r"does not fit resnet10t  of 10 classes; .*mode: init"):
        start_from(digits, tmp_path / "train", tmp_path / "seven.safetensors", "use")


def test_a_file_of_timm_cannot_be_continued(digits: Config, timm_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no checkpoint to continue; use mode: init"):
        start_from(digits, tmp_path / "train", timm_file, "continue")


# ---------------------------------------------------------------------------------------------------- timm:NAME


def test_a_name_that_timm_does_not_know_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"timm has no architecture 'resnet180', did you mean `resnet\d+`\?"):
        start_state("timm:resnet180")


@pytest.mark.parametrize("name", ["wide_resnet10_1", "resnet10t.nobody"])
def test_weights_that_do_not_exist_are_an_error_with_the_fix(name: str) -> None:
    with pytest.raises(UserError, match=rf"weights of timm:{name} cannot be had .*timm\.list_pretrained\(\)"):
        start_state(f"timm:{name}")


def test_without_a_network_the_fix_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be had .*no network, get the file elsewhere and set start\.model"):
        start_state("timm:resnet10t.c3_in1k")


def test_a_download_is_announced_and_weights_that_are_here_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Linear(1, 1))
    start_state("timm:resnet10t.c3_in1k")
    assert "timm downloads timm:resnet10t.c3_in1k now" in caplog.text
    caplog.clear()
    revision = tmp_path / "models--timm--resnet10t.c3_in1k" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (revision / "model.safetensors").touch()
    (revision.parents[1] / "refs").mkdir()
    (revision.parents[1] / "refs" / "main").write_text("abc")
    start_state("timm:resnet10t.c3_in1k")
    assert not caplog.text


# ------------------------------------------------------------------------------------------------------ model.json


@pytest.mark.parametrize("wrong", [{"crop": "border"}, {"interpolation": "nearest"}, {"crop_pct": 1.1}])
def test_a_model_that_wants_another_view_than_ours_is_refused(teacher: Path, wrong: dict[str, object]) -> None:
    values = json.loads((teacher / "model.json").read_text())
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*\n.*Input should be"):
        ModelInfo.model_validate({**values, **wrong})
