"""Ensembles against the mean of what each model says by itself, in numpy."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.command import ROOT
from support.command import selftrain_here as selftrain
from support.fake_stages import FakeStages, with_section
from support.images import class_files, write_files
from support.processes import run, train_job
from support.saved import save_random

from pipeline.config import Config, Evaluate, Finetune, Runtime, Start, load_config
from pipeline.errors import UserError
from pipeline.evaluate.metrics import compute_metrics
from pipeline.evaluate.on_demand import Evaluation, evaluate_on
from pipeline.evaluate.stage import run_evaluate
from pipeline.files import read_json
from pipeline.models.format import export_model, load_model
from pipeline.predict.prediction import Wanted, predict_images
from pipeline.runs.finetune import finetuning
from pipeline.runs.loop import run_loop
from pipeline.shards.dataset import open_split
from pipeline.shards.reader import Reader
from pipeline.stages.jobs import EvaluateJob
from pipeline.stages.machine import resolve

CLASSES = ("cat", "dog", "emu")
RUNTIME = resolve(Runtime(device="cpu", threads=1, precision="fp32"))


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Of another architecture, another order of the classes, and another size and normalization."""
    return [
        save_random(tmp_path / "a.safetensors", CLASSES, seed=1),
        save_random(tmp_path / "b.safetensors", CLASSES[::-1], seed=2, architecture="resnet9", size=16),
        save_random(tmp_path / "c.safetensors", CLASSES, seed=3, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2)),
    ]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_files(tmp_path / "in", class_files(5))


def probabilities(path: Path, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """A model's probabilities of all images in the order of their paths, in plain PyTorch; and the labels."""
    model, info = load_model(path)
    size, files = info.input_size[-1], sorted(images.rglob("*.png"))
    pixels = np.stack(
        [np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for f in files]
    )
    views = (pixels / 255 - np.array(info.mean)) / np.array(info.std)
    with torch.inference_mode():
        found = model(torch.from_numpy(views).float().permute(0, 3, 1, 2)).softmax(1).double().numpy()
    return found[:, [info.classes.index(name) for name in CLASSES]], np.array(
        [CLASSES.index(f.parent.name) for f in files]
    )


def evaluation(models: list[Path], data: Path) -> Evaluation:
    return evaluate_on(models[0], data, "val", Evaluate(batch_size=4), RUNTIME, models[1:])


def test_the_figures_are_those_of_the_mean_of_each_models_probabilities(models: list[Path], images: Path) -> None:
    found = evaluation(models, images)
    each = [probabilities(path, images) for path in models]
    labels = each[0][1]
    mean = np.mean([probs for probs, _ in each], axis=0)
    expected = compute_metrics(np.log(mean), labels)
    assert found.metrics.top1 == expected.top1
    assert found.metrics.nll == pytest.approx(expected.nll, rel=1e-4)
    for path, (probs, _) in zip(models, each, strict=True):
        assert found.members[str(path)].nll == pytest.approx(compute_metrics(np.log(probs), labels).nll, rel=1e-4)
    assert len({round(metrics.nll, 4) for metrics in found.members.values()}) == 3


def test_checkpoints_of_one_training_and_a_fine_tuned_model_are_averaged(
    digits: Config, teacher: Path, tmp_path: Path
) -> None:
    """Each by itself in plain PyTorch, the fine-tuned one at its own, larger size."""
    earlier, last = sorted((teacher / "checkpoints").glob("step-*.pt"))
    training = finetuning(Finetune(image_size=12, steps=6, batch_size=32), teacher, digits.teacher)
    tuned = run(train_job(digits, tmp_path / "finetune", training=training))
    val = open_split(digits.data, "val")
    each: list[np.ndarray] = []
    for path in (earlier, last, tuned):
        model, info = load_model(path)
        pixels = Reader(val, info.input_size[-1], digits.data).read(np.arange(len(val)))
        views = torch.from_numpy((pixels / 255 - np.array(info.mean)) / np.array(info.std)).float()
        with torch.inference_mode():
            each.append(model(views.permute(0, 3, 1, 2)).double().softmax(1).numpy())
    found = evaluate_on(earlier, Path(str(digits.data.root)), "val", Evaluate(), RUNTIME, [last, tuned])
    expected = compute_metrics(np.log(np.mean(each, axis=0)), val.labels)
    assert found.metrics.nll == pytest.approx(expected.nll, rel=1e-3)
    assert found.metrics.top1 == pytest.approx(expected.top1, abs=1.5 / len(val))
    assert len({round(metrics.nll, 4) for metrics in found.members.values()}) == 3
    stored = read_json(teacher / "evaluation-val.json")["nll"]
    assert found.members[str(last)].nll == pytest.approx(stored, rel=1e-5), "the last checkpoint is the model itself"


def test_a_single_model_has_no_members_and_the_figures_of_before(models: list[Path], images: Path) -> None:
    found = evaluation(models[:1], images)
    assert "members" not in found.to_json()
    assert found.metrics == evaluation(models, images).members[str(models[0])]


def test_predictions_are_the_mean_too(models: list[Path], images: Path, tmp_path: Path) -> None:
    wanted = Wanted(out=tmp_path / "out.csv", probabilities=True, others=tuple(models[1:]))
    predict_images(models[0], images, wanted, Evaluate(batch_size=4), RUNTIME)
    rows = sorted(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())), key=lambda row: row["image"])
    found = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    expected = np.mean([probabilities(path, images)[0] for path in models], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [row["label"] for row in rows] == [CLASSES[at] for at in expected.argmax(1)]


def test_models_that_do_not_fit_together_are_refused(models: list[Path], images: Path, tmp_path: Path) -> None:
    other = save_random(tmp_path / "other.safetensors", ("cat", "dog", "fox"))
    with pytest.raises(UserError, match=r"different classes: only .*a\.safetensors knows 'emu'"):
        evaluation([models[0], other], images)
    export_model(models[0], tmp_path / "same.safetensors")
    for twice in (models[0], tmp_path / "same.safetensors"):
        with pytest.raises(UserError, match=r"--with .* names .*a\.safetensors twice, which would count double"):
            evaluation([models[0], models[1], twice], images)
    with pytest.raises(UserError, match=r"names .*a\.safetensors twice"):
        predict_images(models[0], images, Wanted(out=tmp_path / "o.csv", others=(twice,)), Evaluate(), RUNTIME)
    wanted = Wanted(out=tmp_path / "o.csv", features=tmp_path / "f.npy", others=(models[1],))
    with pytest.raises(UserError, match="--features are those of one model"):
        predict_images(models[0], images, wanted, Evaluate(), RUNTIME)
    assert not (tmp_path / "o.csv").exists()


def test_the_command_prints_a_line_per_model_and_one_for_the_mean(models: list[Path], images: Path) -> None:
    others = [argument for path in models[1:] for argument in ("--with", str(path))]
    text = selftrain("evaluate", str(models[0]), str(images), *others)
    assert "mean of 3" in text
    found = json.loads(selftrain("evaluate", str(models[0]), str(images), *others, "--json"))
    assert [member["model"] for member in found["members"]] == [str(path) for path in models]


def test_the_networks_that_the_card_trains_for_alexnets_table_are_described_so() -> None:
    card = (ROOT / "docs/techniques/evaluate_ensemble.md").read_text().replace("\\\n", " ")
    runs = [line.replace("$seed", "3") for line in re.findall(r"selftrain run (configs/alexnet\.yaml .*)", card)]
    by_seed, tuned = (load_config(ROOT / line.split()[0], re.findall(r"--set (\S+)", line)) for line in runs)
    assert (by_seed.seed, by_seed.teacher.model, by_seed.teacher.start) == (3, "alexnet", None)
    assert tuned.teacher.start == Start(model="broader.safetensors")
    assert tuned.teacher.init is None


# ------------------------------------------------------------------------------------------------------------- in runs


def test_a_run_measures_its_ensemble_beside_the_final_model(digits: Config, tmp_path: Path) -> None:
    stages = FakeStages(0.6, 0.7, 0.8)
    config = with_section(with_section(digits, "rounds", num_rounds=2, judges=2), "evaluate", ensemble=4)
    result = run_loop(config, tmp_path, run_stage=stages)
    on_val, on_test = stages.of("evaluate")
    assert (on_val.split, on_test.split) == ("val", "test")
    names = ("final", "member-2", "member-3", "member-4")
    assert on_val.ensemble == on_test.ensemble == names
    rounds = [entry["train_dir"] for entry in result["rounds"]]
    judges = [entry["judges"][0] for entry in result["rounds"][1:]]
    assert [str(on_val.models[n].relative_to(tmp_path)) for n in names] == [rounds[2], judges[1], rounds[1], judges[0]]
    assert on_test.models.keys() - on_val.models.keys() == {"teacher", "control"}
    said = result["final"]["ensemble"]
    assert said["models"] == dict(zip(names, [rounds[2], judges[1], rounds[1], judges[0]], strict=True))
    assert said["val"]["top1"] == result["final"]["test"]["ensemble"]["top1"] == pytest.approx(0.78)
    assert result["final"]["round"] == 2
    assert read_json(tmp_path / "result.json") == result


def test_a_run_without_enough_models_says_so(digits: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = FakeStages(0.6, 0.7)
    result = run_loop(with_section(digits, "evaluate", ensemble=3), tmp_path, run_stage=stages)
    assert "evaluate.ensemble is 3, but the run has 1 model to average" in caplog.text
    assert "ensemble" not in result["final"]
    assert [job.split for job in stages.of("evaluate")] == ["test"]


def test_the_stage_averages_the_models_that_it_is_told(
    digits: Config, teacher: Path, student: Path, tmp_path: Path
) -> None:
    class Open:
        def check_stop(self, where: str) -> None:
            return None

        def finish(self, files: list[str]) -> None:
            self.files = files

    stage: Any = Open()
    models = {"final": student, "control": teacher, "member-2": teacher}
    job = EvaluateJob.of(digits, tmp_path, "val", models, ensemble=("final", "member-2"), sampled="final")
    tmp_path.mkdir(exist_ok=True)
    run_evaluate(job.model_copy(update={"evaluate": Evaluate(mc_dropout=2)}), stage)
    found = read_json(tmp_path / "val.json")
    assert found.keys() == {*models, "ensemble", "mc_dropout"}
    assert found["final"]["nll"] == pytest.approx(read_json(student / "evaluation-val.json")["nll"], rel=1e-5)
    assert found["mc_dropout"]["nll"] != found["final"]["nll"]
    alone = evaluate_on(student, Path(str(digits.data.root)), "val", Evaluate(), RUNTIME, [teacher])
    assert found["ensemble"]["nll"] == pytest.approx(alone.metrics.nll, rel=1e-5)
    assert set(stage.files) == {"val.json", *(f"predictions-{name}.npz" for name in found)}
