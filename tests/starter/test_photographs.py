"""The config that `selftrain init` prints for photographs."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.command import selftrain
from support.starter import at_speed, config_of

from pipeline.config import Probe, Training, changed, load_config
from pipeline.errors import UserError
from pipeline.models.format import ModelInfo, save_model
from pipeline.models.registry import build
from pipeline.stages.machine import resolve
from pipeline.starter import photographs, plan
from pipeline.starter.plan import starting_config


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
