"""Where a training's weights come from: nothing, another model as it is, its continuation, or its weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.images import class_files, write_files
from support.processes import outputs, run, signal_at, train_job

from pipeline.config import Config, Data, Split, Start, Training, changed
from pipeline.errors import UserError
from pipeline.models.format import export_model, read_state
from pipeline.packing.pack import pack
from pipeline.stages.jobs import TrainJob

pytestmark = pytest.mark.process

StartFrom = Callable[..., TrainJob]


@pytest.fixture
def start_from(digits: Config, tmp_path: Path) -> StartFrom:
    """Makes the job of a teacher that starts from a model."""

    def make(source: Path | str, mode: str, name: str = "train", **changes: object) -> TrainJob:
        values = {**digits.teacher.model_dump(), "start": Start(model=str(source), mode=mode), **changes}  # type: ignore[arg-type]
        return train_job(digits, tmp_path / name, training=Training.model_validate(values))

    return make


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Other data than digits: two classes of noise."""
    folder = tmp_path_factory.mktemp("two")
    splits: tuple[Split, ...] = ("labeled", "val")
    for number, split in enumerate(splits):
        write_files(folder / split, class_files(20, "cat dog", first=10_000 * number))
        pack(folder / split, folder / "packed", split=split)
    return Data(root=folder / "packed")


def equal(a: Path, b: Path) -> bool:
    first, second = read_state(a), read_state(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# ---------------------------------------------------------------------------------------------------------------- use


def test_use_takes_a_model_as_it_is(start_from: StartFrom, teacher: Path) -> None:
    out = run(start_from(teacher, "use", image_size=32, dropout=0.5))  # what belongs to a training plays no part
    assert equal(out, teacher)
    assert (out / "evaluation-val.json").read_bytes() == (teacher / "evaluation-val.json").read_bytes()
    assert (out / "predictions-val.npz").read_bytes() == (teacher / "predictions-val.npz").read_bytes()
    assert not (out / "checkpoints").exists()


def test_use_takes_an_exported_file(start_from: StartFrom, teacher: Path, tmp_path: Path) -> None:
    export_model(teacher, tmp_path / "digits.safetensors")
    assert equal(run(start_from(tmp_path / "digits.safetensors", "use")), teacher)


@pytest.mark.parametrize("mode", ["use", "continue"])
def test_use_and_continue_refuse_a_model_of_other_classes(
    start_from: StartFrom, teacher: Path, two_classes: Data, mode: str
) -> None:
    job = changed(start_from(teacher, mode, steps=80), data=two_classes)
    with pytest.raises(UserError, match=r"`start\.model`: .* knows other classes than the data \(0, 1, .*mode: init"):
        run(job)


@pytest.mark.parametrize("mode", ["use", "continue", "init"])
def test_a_missing_model_is_named(start_from: StartFrom, mode: str) -> None:
    with pytest.raises(UserError, match="no model at nowhere/best"):
        run(start_from("nowhere/best", mode))


def test_a_broken_model_is_named(start_from: StartFrom, teacher: Path, tmp_path: Path) -> None:
    export_model(teacher, tmp_path / "cut.safetensors")
    data = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.safetensors is not a readable safetensors file"):
        run(start_from(tmp_path / "cut.safetensors", "init"))


# --------------------------------------------------------------------------------------------------------------- init


def test_init_begins_at_the_weights_and_counts_steps_anew(start_from: StartFrom, teacher: Path) -> None:
    frozen = {"optimizer": {"lr": 1e-12, "weight_decay": 0.0}, "steps": 3, "warmup_steps": 0, "evaluations": 1}
    out = run(start_from(teacher, "init", **frozen))
    trained, original = read_state(out), read_state(teacher)
    assert all(torch.allclose(trained[k], original[k], atol=1e-6) for k in original if k.endswith("weight"))
    record = json.loads((out / "stage.json").read_text())
    assert record["outputs"]["steps"] == 3
    assert record["inputs"]["start"] == json.loads((teacher / "stage.json").read_text())["outputs"]["model_sha256"]


def test_init_replaces_a_head_of_other_classes(start_from: StartFrom, teacher: Path, two_classes: Data) -> None:
    job = start_from(teacher, "init", steps=2, warmup_steps=0, evaluations=1, batch_size=8)
    out = run(changed(job, data=two_classes))
    assert read_state(out)["fc.weight"].shape == (2, 64)


def test_init_of_which_no_tensor_fits_is_an_error(start_from: StartFrom, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"`start\.model`: .* has 0% of the weights of this ResNet9"):
        run(start_from(teacher, "init", model="resnet9", model_args={"width": 8}))


# ----------------------------------------------------------------------------------------------------------- continue


def test_continue_goes_on_to_more_steps_and_is_deterministic(start_from: StartFrom, teacher: Path) -> None:
    first = run(start_from(teacher, "continue", "a", steps=80))
    logged = [json.loads(line)["step"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert min(logged) == 45
    assert max(logged) == 80
    assert json.loads((first / "stage.json").read_text())["outputs"]["steps"] == 80
    top1 = [json.loads((folder / "evaluation-val.json").read_text())["top1"] for folder in (teacher, first)]
    assert top1[1] > top1[0]
    cut = start_from(teacher, "continue", "b", steps=80)
    signal_at(cut, 55, random.Random(0).uniform(0, 0.1))
    assert outputs(run(cut)) == outputs(first)


def test_continue_keeps_the_best_weights_of_before(start_from: StartFrom, teacher: Path) -> None:
    worse = {"steps": 50, "evaluations": 1, "keep": "best", "optimizer": {"lr": 50.0}}
    out = run(start_from(teacher, "continue", **worse))
    assert json.loads((out / "stage.json").read_text())["outputs"]["best_step"] == 40
    assert equal(out, teacher)


def test_continue_refuses_what_is_trained_already(start_from: StartFrom, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"was trained for 40 steps already; set steps above that"):
        run(start_from(teacher, "continue", steps=40))


def test_continue_refuses_what_has_no_checkpoint(start_from: StartFrom, teacher: Path, tmp_path: Path) -> None:
    export_model(teacher, tmp_path / "digits.safetensors")
    with pytest.raises(UserError, match="has no checkpoint to continue; use mode: init"):
        run(start_from(tmp_path / "digits.safetensors", "continue", steps=80))


def test_continue_refuses_another_architecture_or_optimizer(start_from: StartFrom, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit wide_resnet16_2 .*use mode: init"):
        run(start_from(teacher, "continue", "a", steps=80, model="wide_resnet16_2"))
    with pytest.raises(UserError, match=r"`optimizer\.name`: .* was trained with sgd, .*cannot change to lamb"):
        run(start_from(teacher, "continue", "b", steps=80, optimizer={"name": "lamb"}))


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [
        ("frozen_layers", 1, "0"),
        ("image_size", 16, "8"),
        ("mean", (0.5, 0.5, 0.5), r"\[0\.305, 0\.305, 0\.305\]"),
        ("std", (0.5, 0.5, 0.5), r"\[0\.376, 0\.376, 0\.376\]"),
    ],
)
def test_continue_refuses_another_input_or_other_frozen_layers(
    start_from: StartFrom, teacher: Path, key: str, value: object, theirs: str
) -> None:
    with pytest.raises(UserError, match=rf"`{key}`: .* was trained with {theirs}, .*use mode: init"):
        run(start_from(teacher, "continue", steps=80, **{key: value}))


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_continue_obeys_its_own_hyperparameters(start_from: StartFrom, teacher: Path, weight_decay: float) -> None:
    changes = {"steps": 45, "evaluations": 1, "optimizer": {"momentum": 0.5, "weight_decay": weight_decay}}
    out = run(start_from(teacher, "continue", **changes))
    (last,) = (out / "checkpoints").glob("step-*45.pt")
    groups = torch.load(last, weights_only=True)["network"]["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.0, weight_decay]
    assert {group["momentum"] for group in groups} == {0.5}


def test_freezing_every_layer_is_an_error_that_names_the_key(start_from: StartFrom, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"`frozen_layers`: 99 freezes all of wide_resnet10_1"):
        run(start_from(teacher, "init", frozen_layers=99))
