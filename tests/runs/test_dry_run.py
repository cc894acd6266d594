"""Every network of a run is tried at every size that it will meet, before the first of them is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fake_stages import FakeStages, with_section

from pipeline.config import Config, Finetune, changed
from pipeline.errors import UserError
from pipeline.runs.loop import run_loop

VIT = {"model": "vit_tiny_patch16_224", "model_args": {}, "stochastic_depth": 0.0}


@pytest.mark.parametrize("section", ["teacher", "student"])
def test_a_network_of_another_size_is_refused_before_round_0(config: Config, tmp_path: Path, section: str) -> None:
    stages = FakeStages(0.5)
    wrong = with_section(config, section, **VIT)
    fix = r"8 pixels \(`image_size`\): .*; set image_size to 224"
    with pytest.raises(UserError, match=rf"^{section}: `model`: vit_tiny_patch16_224 cannot take images of {fix}"):
        run_loop(wrong, tmp_path / "run", run_stage=stages)
    assert not stages.jobs
    assert not (tmp_path / "run" / "stages.json").exists()


def test_the_networks_of_later_rounds_are_tried(config: Config, tmp_path: Path) -> None:
    wrong = with_section(config, "student", model_args={}, stochastic_depth=0.0)
    wrong = with_section(wrong, "rounds", overrides=({}, {"student.model": "inception_v3"}))
    with pytest.raises(UserError, match=r"^student: `model`: inception_v3 "):
        run_loop(wrong, tmp_path / "run", run_stage=FakeStages(0.5))


def test_the_size_of_the_fine_tune_is_tried(config: Config, tmp_path: Path) -> None:
    wrong = config
    for section in ("teacher", "student"):
        args = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1}
        wrong = with_section(wrong, section, **VIT | {"model_args": args})
    wrong = changed(wrong, finetune=Finetune(image_size=12, steps=5))
    with pytest.raises(
        UserError, match=r"12 pixels \(`finetune\.image_size`\): .*; add dynamic_img_size: true to model_a"
    ):
        run_loop(wrong, tmp_path / "run", run_stage=FakeStages(0.5))


@pytest.mark.parametrize(("key", "value"), [("in_chans", 1), ("features_only", True), ("pretrained", True)])
def test_arguments_of_no_classifier_are_refused_before_round_0(
    config: Config, tmp_path: Path, key: str, value: int
) -> None:
    with pytest.raises(UserError, match=rf"^student: `model_args`: {key} is no argument of a network"):
        run_loop(with_section(config, "student", model_args={key: value}), tmp_path / "run", run_stage=FakeStages(0.5))


def test_what_the_fine_tune_asks_of_a_network_is_tried(config: Config, tmp_path: Path) -> None:
    wrong = changed(config, finetune=Finetune(image_size=12, steps=5, gradient_checkpointing=True))
    with pytest.raises(UserError, match=r"`gradient_checkpointing`: WideResNet cannot compute its activations again"):
        run_loop(wrong, tmp_path / "run", run_stage=FakeStages(0.5))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("gradient_checkpointing", True, "WideResNet cannot compute its activations again"),
        ("frozen_layers", 99, "99 freezes all of wide_resnet10_1"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused_before_round_0(
    config: Config, tmp_path: Path, key: str, value: object, problem: str
) -> None:
    with pytest.raises(UserError, match=rf"^student: `{key}`: {problem}"):
        run_loop(with_section(config, "student", **{key: value}), tmp_path / "run", run_stage=FakeStages(0.5))


def test_a_rate_that_an_architecture_has_no_use_for_is_refused_before_round_0(config: Config, tmp_path: Path) -> None:
    stages, args = FakeStages(0.5), {"img_size": 8, "width": 8}
    wrong = with_section(config, "student", model="mlp10", model_args=args, stochastic_depth=0.1)
    with pytest.raises(UserError, match=r"^student: `stochastic_depth`: mlp10 has none; set it to 0"):
        run_loop(wrong, tmp_path / "run", run_stage=stages)
    assert not stages.jobs
