"""The config that `selftrain init` prints; long because it has a part for each kind of images, and each is tested."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.command import selftrain

from pipeline.config import Config, Data, Probe, Runtime, Training, changed, load_config, parse
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.config.unread import unread_beside, unread_keys
from pipeline.errors import UserError
from pipeline.models.format import ModelInfo, save_model
from pipeline.models.registry import build
from pipeline.packing.carve import Carve
from pipeline.packing.pack import pack
from pipeline.shards.dataset import open_split
from pipeline.stages.machine import resolve
from pipeline.starter import photographs, plan, scratch, speed
from pipeline.starter.given import Given
from pipeline.starter.plan import starting_config, threshold_for
from pipeline.starter.recipe import recipe


def packed(folder: Path, side: int, num_per_class: tuple[int, ...] = (30, 30), carve: bool = True) -> Path:
    """A packed folder of noise, brighter for later classes."""
    generator = np.random.default_rng(side)
    for split in ("all",) if carve else ("labeled", "unlabeled", "val"):
        for label, count in enumerate(num_per_class):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(100 * label, 100 * label + 50, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{index}.png")
        if carve:
            pack(folder / split, folder / "packed", carve=Carve(num_labeled=20, val_fraction=0.2, test_fraction=0.2))
        else:
            pack(folder / split, folder / "packed", split=split)  # type: ignore[arg-type]
    return folder / "packed"


@pytest.fixture(autouse=True)
def _measure_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is plays no part here."""
    monkeypatch.setattr(speed, "_MEASURE_S", 0.01)


def config_of(folder: Path, **asked: Any) -> tuple[Config, str]:
    text = starting_config(folder, **asked)
    return parse(Config, yaml.safe_load(text), "init"), text


@pytest.mark.parametrize("side", [8, 32, 72])
def test_it_fits_the_images(side: int, tmp_path: Path) -> None:
    config, text = config_of(packed(tmp_path, side), encoder="none")
    assert config.teacher.image_size == config.student.image_size == side
    assert config.teacher.weak.crop == ("resized" if side > 64 else "pad")
    assert config.teacher.mean == pytest.approx([75 / 255] * 3, abs=0.03)  # levels 0-49 and 100-149 in equal parts
    assert config.teacher.batch_size <= 20
    assert "20 labeled, 16 unlabeled, 12 val, 12 test; 2 classes" in text


def test_every_key_has_a_comment(tmp_path: Path) -> None:
    _, text = config_of(packed(tmp_path, 8))
    keys = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(keys) > 40
    assert [line for line in keys if "  # " not in line] == []
    assert max(len(line) for line in keys if str(tmp_path) not in line) <= 130


def test_images_from_elsewhere_are_filtered_and_uneven_classes_stay_uneven(tmp_path: Path) -> None:
    carved, _ = config_of(packed(tmp_path / "carved", 8))
    apart, _ = config_of(packed(tmp_path / "apart", 8, num_per_class=(40, 8), carve=False))
    assert (carved.select.threshold, carved.select.balance) == (0.0, "uniform")
    assert (apart.select.threshold, apart.select.balance, apart.select.prior) == (0.65, "prior", ())


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000])
def test_the_threshold_filters_whatever_the_number_of_classes(num_classes: int) -> None:
    """0.3, as in the paper, is for 1,000 classes: of three, the surest one always has more."""
    assert threshold_for(1000) == 0.3
    assert 1 / num_classes + 0.14 < threshold_for(num_classes) < 0.7


def test_a_carve_of_uneven_classes_is_balanced_by_the_shares_of_val(tmp_path: Path) -> None:
    """A carve labels as many images of each class, so the labels do not show that the source is uneven."""
    config, text = config_of(packed(tmp_path, 8, num_per_class=(120, 20)))
    assert config.select.balance == "prior"
    assert config.select.prior == pytest.approx((25 / 30, 5 / 30), abs=1e-3)
    assert "those of val" in text


def test_odd_paths_survive_yaml(tmp_path: Path) -> None:
    folder = packed(tmp_path, 8).rename(tmp_path / 'a: "b" # c')
    config, _ = config_of(folder)
    assert config.data.root == folder


def test_missing_splits_are_named_with_the_command_that_adds_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), "white").save(tmp_path / "in" / name / "0.png")
    pack(tmp_path / "in", tmp_path / "packed", split="labeled")
    with pytest.raises(UserError, match=r"has no unlabeled and no val images.*--split unlabeled"):
        starting_config(tmp_path / "packed")


@pytest.mark.parametrize("side", [8, 32, 64, 65, 300])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_recipe_is_a_network_with_residual_paths_to_drop(side: int, device: str) -> None:
    found = recipe(side, device)
    build(found.model, 3, stochastic_depth=0.1, dropout=0.2, model_args=found.model_args)
    assert found.teacher_steps[0] < found.teacher_steps[1]
    assert found.image_size <= max(side, 8)


def test_it_loads_as_the_file_that_users_write(tmp_path: Path) -> None:
    (tmp_path / "birds.yaml").write_text(starting_config(packed(tmp_path, 8)))
    assert load_config(tmp_path / "birds.yaml", ["teacher.steps=50"]).teacher.steps == 50


# ---------------------------------------------------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("photos"), 72)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("tiny"), 8)


def at_speed(monkeypatch: pytest.MonkeyPatch, images_per_s: float) -> None:
    """Have a machine of this speed, whatever the network."""
    for module in (photographs, scratch):
        monkeypatch.setattr(module, "training_speed", lambda *_: images_per_s)
    monkeypatch.setattr(photographs, "prediction_speed", lambda *_: 3 * images_per_s)
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 50 * images_per_s)


def test_photographs_start_from_a_pretrained_encoder_without_a_network(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    at_speed(monkeypatch, 100)
    config, text = config_of(photos)
    assert config.teacher.start is not None
    assert (config.teacher.start.model, config.teacher.image_size) == ("timm:tf_efficientnet_lite0.in1k", 224)
    assert config.teacher.probe == Probe()
    assert (config.rounds.on_features, config.rounds.num_rounds, config.rounds.start) == (3, 1, "init")
    student = config.student
    assert (student.model, student.start, student.image_size) == ("tf_efficientnet_lite0", None, 192)
    assert (student.optimizer.lr, student.optimizer.lr_batch_size) == (0.005, 64)
    assert (student.freeze_norm, student.layer_decay) == (True, 0.75)
    assert "4.7 million parameters" in text
    assert "downloads its weights (timm/tf_efficientnet_lite0.in1k, 19 MB)" in text
    assert "mean" not in config.teacher.model_fields_set  # that of the encoder is taken


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("timm:tf_efficientnet_lite0.in1k", {"name": "sgd", "lr": 0.005, "lr_batch_size": 64, "weight_decay": 5e-5}),
        ("timm:resnet18.a1_in1k", {"name": "sgd", "lr": 0.005, "lr_batch_size": 64, "weight_decay": 5e-5}),
        ("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"name": "adamw", "lr": 5e-5, "weight_decay": 0.05}),
        ("timm:convnext_atto.d2_in1k", {"name": "adamw", "lr": 5e-5, "weight_decay": 0.05}),
    ],
)
def test_networks_with_batch_norm_and_others_are_fine_tuned_each_in_its_way(
    encoder: str, expected: dict[str, object], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_speed(monkeypatch, 100)
    config, _ = config_of(photos, encoder=encoder)
    student, has_batch_norm = config.student, expected["name"] == "sgd"
    assert {key: getattr(student.optimizer, key) for key in expected} == expected
    assert student.layer_decay == 0.75
    assert student.freeze_norm == has_batch_norm
    assert student.clip_norm == (2.0 if has_batch_norm else Training.model_fields["clip_norm"].default)


@pytest.mark.process
def test_the_command_writes_a_config_for_photographs(photos: Path, tmp_path: Path) -> None:
    """In a process of its own, which imports nothing beforehand."""
    (tmp_path / "photos.yaml").write_text(selftrain("init", photos, "--minutes", "5", cwd=tmp_path))
    assert load_config(tmp_path / "photos.yaml").teacher.start is not None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_faster_precision_is_taken(precision: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_speed(monkeypatch, 100)
    measured = {precision: 100.0}
    monkeypatch.setattr(photographs, "training_speed", lambda *of: measured.get(of[-1].precision, 50.0))
    monkeypatch.setattr(plan, "resolve", lambda runtime: changed(resolve(runtime), precision="bf16"))
    assert config_of(photos)[0].runtime.precision == ("fp32" if precision == "fp32" else "auto")


@pytest.mark.parametrize("method", METHOD_CONFIGS)
@pytest.mark.parametrize("form", ["photos", "tiny"])
def test_every_method_gets_a_config_that_it_takes_and_reads(
    method: str, form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as no label smoothing for fixmatch, which would leave it no image."""
    at_speed(monkeypatch, 100)
    config, text = config_of(request.getfixturevalue(form), method=method)
    assert config.method == method
    assert unread_keys(config) == unread_beside(config) == []
    sections = {line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()}
    assert sections - {"seed", "method", "data", "evaluate", "runtime"} == set(METHOD_CONFIGS[method].reads) - (
        {"label"} if method == "meta" else {"committee"}
    )
    if form == "photos":
        start = config.teacher.start if "rounds" in sections else config.student.start
        assert start is not None


@pytest.mark.parametrize("form", ["photos", "tiny"])
def test_steps_are_what_the_minutes_allow(
    form: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_speed(monkeypatch, 100)
    steps = [config_of(request.getfixturevalue(form), minutes=m)[0].student.steps for m in (6, 12, 24)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.05)
    assert steps[2] == pytest.approx(4 * steps[0], rel=0.05) or steps[2] == 500  # of so few images no more
    assert "time      about 8 minutes" in config_of(request.getfixturevalue(form), minutes=8)[1]


def test_images_that_are_slow_to_read_leave_fewer_steps(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of 12 megapixels may cost a CPU more than the network does."""
    at_speed(monkeypatch, 100)
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 1e9)
    quick = config_of(photos, minutes=8)[0].student.steps
    monkeypatch.setattr(photographs, "reading_speed", lambda *_: 100)
    assert config_of(photos, minutes=8)[0].student.steps == pytest.approx(quick / 2, rel=0.1)


def test_a_cpu_reads_in_the_time_of_passes_and_a_gpu_meanwhile() -> None:
    cpu, gpu = (Given(None, {}, None, Runtime(device=device), 1, "uda", None) for device in ("cpu", "cuda"))  # type: ignore[arg-type]
    overhead = photographs._OVERHEAD
    assert photographs._with_reading(cpu, 10, 40) == pytest.approx(overhead * 0.125)
    assert photographs._with_reading(gpu, 10, 40) == pytest.approx(overhead * 0.1)
    assert photographs._with_reading(gpu, 40, 10) == pytest.approx(overhead * 0.1)


def test_predictions_are_measured_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With folded BatchNorm: the 20 of the pass that finds out what to fold are all that run."""
    calls, batch_norm = [], torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *given: calls.append(given) or batch_norm(*given))
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert speed.prediction_speed(speed.Network("resnet18", {}, 2), images, resolve(Runtime(device="cpu"))) > 0
    assert len(calls) == 20


def test_larger_images_are_read_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MEASURE_S", 0.3)
    runtime = resolve(Runtime(device="cpu"))
    small, large = (
        open_split(Data(root=packed(tmp_path / str(side), side, (8, 8), carve=False)), "labeled") for side in (64, 1024)
    )
    assert speed.reading_speed(small, 64, runtime) > 4 * speed.reading_speed(large, 64, runtime)


def test_more_than_an_hour_is_said_first(photos: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_speed(monkeypatch, 5)
    assert "Note" not in starting_config(photos)
    assert re.match(r"# Note: this takes about \d+ hours here; `--minutes 30` sizes it", starting_config(tiny))
    at_speed(monkeypatch, 0.5)
    assert re.match(r"# Note: this takes about \d+ hours here, not 30 minutes", starting_config(photos))


def test_a_fast_machine_gets_a_larger_encoder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_speed(monkeypatch, 5000)
    config, _ = config_of(photos)
    assert config.student.model == "convnext_base"
    assert config.student.optimizer.name == "adamw"
    assert not config.student.freeze_norm  # it has no BatchNorm


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm:resnet5000", r"timm:resnet5000: timm has no architecture of that name; did you mean"),
        ("timm:resnet50.nope", r"no such pretrained weights; there are: timm:resnet50\.\w+"),
        ("timm:resnet9", r"timm:resnet9: timm has no such pretrained weights"),
        ("resnet50", r"resnet50 does not exist; did you mean `timm:resnet50`\?"),
        ("gone.safetensors", r"gone\.safetensors does not exist; give a file, or timm:"),
        (__file__, r"does not say which network its weights are of; call the file as timm does"),
    ],
)
def test_an_encoder_that_does_not_exist_is_refused(name: str, why: str, photos: Path) -> None:
    with pytest.raises(UserError, match=rf"^--encoder .*{why}"):
        starting_config(photos, encoder=name)


def test_a_file_of_weights_says_its_network_by_its_name_or_beside_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for small images, which get an encoder when one is named."""
    info = ModelInfo(
        schema=1,
        architecture="wide_resnet10_1",
        model_args={"bn_momentum": 0.2},
        classes=("a", "b"),
        input_size=(3, 24, 24),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        metrics={},
        lineage={},
    )
    at_speed(monkeypatch, 100)
    state = build("wide_resnet10_1", 2).state_dict()
    for name in ("ours", "tf_efficientnet_lite0.in1k"):
        save_model(tmp_path / f"{name}.safetensors", state, info)
    (tmp_path / "tf_efficientnet_lite0.in1k.json").unlink()
    config, text = config_of(tiny, encoder=str(tmp_path / "ours.safetensors"))
    assert (config.teacher.model, config.teacher.image_size, config.student.image_size) == ("wide_resnet10_1", 24, 24)
    assert config.student.model_args == {"bn_momentum": 0.2}
    assert "download" not in text
    config, _ = config_of(tiny, encoder=str(tmp_path / "tf_efficientnet_lite0.in1k.safetensors"))
    assert (config.teacher.model, config.teacher.image_size) == ("tf_efficientnet_lite0", 224)


def test_an_encoder_of_one_size_is_fine_tuned_at_that_size(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_speed(monkeypatch, 100)
    config, _ = config_of(photos, encoder="timm:vit_small_patch14_dinov2.lvd142m")
    assert config.teacher.image_size == config.student.image_size == 224
    assert config.teacher.model_args == config.student.model_args == {"img_size": 224}


def test_a_wrong_method_or_time_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"--method fixmach is unknown; did you mean `fixmatch`"):
        starting_config(tiny, method="fixmach")
    with pytest.raises(UserError, match=r"--minutes must be a positive number, not -3"):
        starting_config(tiny, minutes=-3)
