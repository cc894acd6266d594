"""Where a training's weights come from: nothing, another model as it is, its continuation, or its weights."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.images import class_files, write_files
from support.processes import outputs, run, signal_at, train_job
from support.spoilers import spoil_a_gradient

from pipeline.config import Config, Data, Split, Start, Training, changed, dump_yaml, load_config
from pipeline.errors import UserError
from pipeline.models.format import export_model, has_info, load_model, read_info, read_state
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
        ("layer_decay", 0.5, "1.0"),
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


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def stopped(digits: Config, children: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last good checkpoint of a teacher whose gradient then was not a number, beside what its message says."""
    job = train_job(digits, tmp_path_factory.mktemp("it's stopped") / "train", training=digits.teacher)
    with pytest.raises(UserError) as failure:
        run(changed(job, runtime=changed(job.runtime, checkpoint_every=5)), spoil_a_gradient)
    (job.out.parent / "message").write_text(str(failure.value))
    return job.out / "checkpoints" / "step-000000005.pt"


def advised(message: str) -> list[str]:
    """The values of the `--set` options that a message proposes."""
    words = shlex.split(message.rpartition("add to the command: ")[2])
    assert words[::2] == ["--set"] * (len(words) // 2)
    return words[1::2]


def test_the_options_that_the_message_of_nan_proposes_finish_the_training(
    digits: Config, stopped: Path, tmp_path: Path
) -> None:
    options = advised((stopped.parents[2] / "message").read_text())
    assert f"teacher.start.model={stopped}" in options
    (tmp_path / "config.yaml").write_bytes(dump_yaml(digits).encode())
    out = run(train_job(load_config(tmp_path / "config.yaml", options), tmp_path / "train"))
    record = json.loads((out / "stage.json").read_text())
    assert record["outputs"]["steps"] == digits.teacher.steps
    assert min(json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()) > 5


def test_whoever_follows_the_messages_of_a_rate_that_is_far_too_high_ends_with_a_model(
    digits: Config, tmp_path: Path
) -> None:
    """Its last good checkpoint is finite and no more, so that going on from it fails too."""
    (tmp_path / "config.yaml").write_bytes(dump_yaml(digits).encode())
    options, ways = ["teacher.optimizer.lr=1e6", "teacher.clip_norm=0", "runtime.checkpoint_every=1"], []
    for number in range(20):
        try:
            out = run(train_job(load_config(tmp_path / "config.yaml", options), tmp_path / f"train-{number}"))
            break
        except UserError as error:
            ways.append(advised(str(error)))
            options += ways[-1]
    assert (out / "model.safetensors").exists()
    assert any(way[0].startswith("teacher.start.model=") for way in ways)
    assert any(way[0] == "teacher.start=null" for way in ways)


@pytest.mark.parametrize("mode", ["use", "init"])
def test_a_checkpoint_starts_a_training_with_its_averaged_weights(
    start_from: StartFrom, stopped: Path, mode: str
) -> None:
    frozen = {"optimizer": {"lr": 1e-12, "weight_decay": 0.0}, "steps": 1, "warmup_steps": 0, "evaluations": 1}
    out = run(start_from(stopped, mode, **frozen))
    given = torch.load(stopped, weights_only=True)["network"]["ema"]
    taken = read_state(out)
    assert all(torch.allclose(taken[k], given[k], atol=1e-6) for k in given if k.endswith("weight"))
    assert read_info(out).classes == tuple("0123456789")


def test_a_checkpoint_is_a_model_to_the_other_commands(digits: Config, stopped: Path, tmp_path: Path) -> None:
    for source in (stopped, *stopped.parent.glob("best.pt")):
        export_model(source, tmp_path / f"{source.stem}.safetensors")
        export_model(source, tmp_path / f"{source.stem}.safetensors")  # again: it is the same
        exported, info = load_model(tmp_path / f"{source.stem}.safetensors")
        model, _ = load_model(source)
        images = torch.rand(2, *info.input_size)
        assert torch.equal(model(images), exported(images))


def test_a_checkpoint_that_does_not_say_what_it_is_still_has_weights(
    start_from: StartFrom, stopped: Path, tmp_path: Path
) -> None:
    state = torch.load(stopped, weights_only=True)
    del state["info"]  # as before version 0.2
    torch.save(state, tmp_path / "old.pt")
    assert not has_info(tmp_path / "old.pt")
    with pytest.raises(UserError, match=r"does not say what its model is; name its stage, or .*mode: init"):
        load_model(tmp_path / "old.pt")
    run(start_from(tmp_path / "old.pt", "init", steps=1, warmup_steps=0, evaluations=1))


def test_a_checkpoint_away_from_its_stage_cannot_be_continued(
    start_from: StartFrom, stopped: Path, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(stopped, tmp_path / "alone"))
    with pytest.raises(UserError, match=r"alone/step-000000005\.pt has no checkpoint to continue; use mode: init"):
        run(start_from(alone, "continue"))


def test_freezing_every_layer_is_an_error_that_names_the_key(start_from: StartFrom, teacher: Path) -> None:
    with pytest.raises(UserError, match=r"`frozen_layers`: 99 freezes all of wide_resnet10_1"):
        run(start_from(teacher, "init", frozen_layers=99))
