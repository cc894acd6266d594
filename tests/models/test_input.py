"""What pretrained weights expect to see is taken where the config does not set it, and told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.saved import save_random

from pipeline.config import Config, Start, Training, load_config, parse
from pipeline.errors import UserError
from pipeline.models import build
from pipeline.models.input import KEYS, with_input_of
from pipeline.runs.inputs import with_inputs

HALF = (0.5, 0.5, 0.5)
VIT = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("selftrain"), "propagate", True)
    return caplog


def training(start: str | Path, **values: object) -> Training:
    return parse(Training, {"start": {"model": str(start)}, **values}, "test")


def of(start: str | Path, **values: object) -> Training:
    made = training(start, **values)
    return with_input_of(made.start, made, "teacher")


def test_weights_of_timm_bring_what_they_expect(told: pytest.LogCaptureFixture) -> None:
    found = of(VIT, model="vit_tiny_patch16_224")
    assert (found.image_size, found.mean, found.std) == (224, HALF, HALF)
    assert (found.crop_pct, found.interpolation) == (0.9, "bicubic")
    what = "image_size 224, mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], crop_pct 0.9"
    assert f"teacher: {what}: so {VIT} expects it" in told.text


def test_what_the_config_sets_stays_even_if_it_is_the_default(told: pytest.LogCaptureFixture) -> None:
    default = Training()
    found = of(VIT, mean=list(default.mean), std=list(default.std))
    assert (found.image_size, found.mean, found.std) == (224, default.mean, default.std)
    everything = {key: getattr(default, key) for key in KEYS}
    told.clear()
    assert of(VIT, **everything) == training(VIT, **everything)
    assert told.text == ""


def test_a_model_of_ours_brings_what_it_was_trained_with(teacher: Path, digits: Config) -> None:
    found = of(teacher)
    assert (found.image_size, found.mean, found.std) == (8, digits.teacher.mean, digits.teacher.std)


@pytest.mark.parametrize(
    ("file", "model", "mean"),
    [
        ("tf_efficientnet_lite0.in1k", "tf_efficientnet_lite0", HALF),
        ("weights", "tf_efficientnet_lite0.in1k", HALF),
        ("weights", "tf_efficientnet_lite0", Training().mean),
        ("weights.v2", "tf_efficientnet_lite0", Training().mean),
    ],
)
def test_a_file_of_weights_brings_what_its_tag_says(
    tmp_path: Path, file: str, model: str, mean: tuple[float, ...], told: pytest.LogCaptureFixture
) -> None:
    save_file(build("resnet9", 3).state_dict(), tmp_path / f"{file}.safetensors")
    assert of(tmp_path / f"{file}.safetensors", model=model).mean == mean
    assert ("nothing says what" in told.text) == (mean != HALF)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet180", "timm has no architecture 'resnet180', did you"), ("resnet50.x", "Invalid .* tag")],
)
def test_a_start_that_timm_does_not_know_is_refused_before_anything_is_trained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"`start\.model`: {message}"):
        of(f"timm:{name}")


def config(tmp_path: Path, text: str) -> Config:
    (tmp_path / "config.yaml").write_text(text)
    return with_inputs(load_config(tmp_path / "config.yaml"))


def test_a_student_that_starts_from_its_teacher_sees_what_the_teacher_sees(tmp_path: Path) -> None:
    text = f"teacher: {{start: {{model: '{VIT}'}}}}\nrounds: {{start: %s}}\nstudent: {{image_size: 240}}"
    found = config(tmp_path, text % "init")
    assert (found.teacher.image_size, found.teacher.mean) == (224, HALF)
    assert (found.student.image_size, found.student.mean) == (240, HALF)
    assert config(tmp_path, text % "scratch").student.mean == Training().mean


def test_a_teacher_that_sees_the_images_of_its_student_sets_what_they_are(tmp_path: Path) -> None:
    found = config(tmp_path, f"method: meta\nteacher: {{start: {{model: '{VIT}'}}}}")
    assert (found.student.image_size, found.student.mean) == (224, HALF)
    assert found.student.unlabeled_ratio == config(tmp_path, "method: meta").student.unlabeled_ratio


def test_a_config_without_starts_stays_as_it_is(tmp_path: Path) -> None:
    assert config(tmp_path, "seed: 3") == parse(Config, {"seed": 3}, "test")


def test_start_is_what_it_was(teacher: Path) -> None:
    assert of(teacher).start == Start(model=str(teacher))


def test_a_mean_that_is_set_stays_beside_weights_that_expect_a_computed_one(tmp_path: Path) -> None:
    start = save_random(tmp_path / "m.safetensors", ("a", "b"), preprocessing="mean_image")
    assert of(start, model="wide_resnet10_1").preprocessing == "mean_image"
    found = of(start, model="wide_resnet10_1", mean=[0.1, 0.2, 0.3])
    assert (found.preprocessing, found.mean, found.std) == ("given", (0.1, 0.2, 0.3), HALF)


@pytest.mark.parametrize(
    ("values", "fix"), [({"evaluation_size": 10}, "drop evaluation_size"), ({"probe": {}}, "choose a start")]
)
def test_weights_that_expect_what_cannot_be_are_refused(tmp_path: Path, values: dict[str, object], fix: str) -> None:
    start = save_random(tmp_path / "m.safetensors", ("a", "b"), preprocessing="mean_image")
    with pytest.raises(UserError, match=rf"teacher, with what .*m\.safetensors expects: .*{fix}"):
        of(start, model="wide_resnet10_1", **values)


def test_a_student_that_starts_from_its_teacher_has_its_preprocessing_or_what_it_sets() -> None:
    def student(**values: object) -> Training:
        raw = {"teacher": {"preprocessing": "pca_whitening"}, "student": {"unlabeled_ratio": 4, **values}}
        return with_inputs(parse(Config, {**raw, "rounds": {"start": "init"}}, "test")).student

    assert student().preprocessing == "pca_whitening"
    assert student(mean=[0.1, 0.2, 0.3]).preprocessing == "given"
    assert student(preprocessing="mean_std").preprocessing == "mean_std"
    with pytest.raises(UserError, match=r"student, with what its teacher expects .*at most 40"):
        student(image_size=64)
