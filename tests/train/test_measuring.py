"""What a training says of itself is measured, of the right step, and on the disk when it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.fake_stages import with_section
from support.processes import run, train_job
from support.spoilers import BAD_STEP, LAG_S, lag_behind, skip_first_steps, spoil_a_gradient, watch_the_disk

from pipeline.config import Config, changed
from pipeline.errors import UserError
from pipeline.methods.noisy_student.learner import PseudoLabelLearner
from pipeline.shards.dataset import open_split
from pipeline.shards.order import Order
from pipeline.shards.reader import Reader
from pipeline.stages.kinds import fingerprint_of
from pipeline.stages.ranks import Ranks
from pipeline.threads import read_ahead
from pipeline.train import setup
from pipeline.train.ema import Ema
from pipeline.train.meter import Meter
from pipeline.train.schedule import lr_at

METRICS = PseudoLabelLearner.metrics


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.process
@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_a_gradient_that_is_not_finite_is_told_of_its_own_step(
    digits: Config, tmp_path: Path, clip_norm: float
) -> None:
    training = changed(digits.teacher, clip_norm=clip_norm)
    with pytest.raises(UserError, match=rf"not finite at step {BAD_STEP} \(images ") as failure:
        run(train_job(digits, tmp_path / "train", training=training), spoil_a_gradient)
    dataset = open_split(digits.data, "labeled")
    order = Order(dataset.shard_starts, None, seed=digits.seed, stream="labeled", round=0, window_shards=64)
    first = BAD_STEP * training.batch_size
    keys = [dataset.key(int(row)) for row in order.rows(first, first + training.batch_size)]
    assert all(key in str(failure.value) for key in keys[:4])
    bad = json.loads((tmp_path / "train" / "bad-batch.json").read_text())
    assert bad == {"step": BAD_STEP, "images": {"labeled": keys}}


@pytest.mark.process
def test_the_best_weights_are_those_of_the_figure_that_judges(digits: Config, tmp_path: Path) -> None:
    judged = with_section(digits, "rounds", judge_by="balanced_accuracy")
    training = changed(judged.teacher, keep="best", steps=20, evaluations=4)
    folder = run(train_job(judged, tmp_path / "train", training=training))
    found = {line["step"]: line["val_balanced_accuracy"] for line in lines(folder) if "val_top1" in line}
    outputs = json.loads((folder / "stage.json").read_text())["outputs"]
    assert outputs["best_top1"] == max(found.values())
    assert found[outputs["best_step"]] == max(found.values())
    kept = json.loads((folder / "evaluation-val.json").read_text())
    assert kept["balanced_accuracy"] == max(found.values())


def test_the_figure_that_judges_repeats_no_training_that_chooses_nothing(digits: Config, tmp_path: Path) -> None:
    judged = with_section(digits, "rounds", judge_by="macro_f1")
    for keep, same in (("last", True), ("best", False)):
        training = changed(digits.teacher, keep=keep)
        jobs = [train_job(config, tmp_path, training=training) for config in (digits, judged)]
        assert (fingerprint_of(jobs[0]) == fingerprint_of(jobs[1])) is same


@pytest.mark.process
def test_the_time_of_steps_lasts_until_the_device_has_taken_them(digits: Config, tmp_path: Path) -> None:
    training = changed(digits.teacher, steps=4, warmup_steps=0, evaluations=1)
    folder = run(train_job(digits, tmp_path / "train", training=training), lag_behind)
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timing] == [4]
    assert all(line["seconds"] > LAG_S for line in timing)


def test_the_log_has_each_evaluation_and_what_the_stage_made(teacher: Path, labels: Path, selection: Path) -> None:
    said = (teacher / "output.log").read_text()
    evaluations = [line for line in lines(teacher) if "val_top1" in line]
    assert evaluations
    for line in evaluations:
        assert f"step {line['step']:,} of " in said
        assert f"val_top1 {line['val_top1']:.4f}" in said
    assert "steps are done; best on val: " in said
    assert f"val: {json.loads((teacher / 'evaluation-val.json').read_text())['top1']:.2%} of " in said
    assert "5 shards are labeled now, 0 were labeled before" in (labels / "output.log").read_text()
    assert "Selected pseudo-labels" in (selection / "messages.jsonl").read_text()


def test_the_norm_of_the_gradient_is_measured_without_clipping(teacher: Path, student: Path) -> None:
    for folder in (teacher, student):
        assert all(0.01 < line["grad_norm"] < 100 for line in lines(folder) if "loss" in line)


def test_the_learning_rate_of_a_line_is_the_schedules(digits: Config, teacher: Path, student: Path) -> None:
    """Of a student it grows with its unlabeled images, which its loss is a mean over."""
    for folder, training in ((teacher, digits.teacher), (student, digits.student)):
        num_images = round(training.batch_size * (1 + training.unlabeled_ratio))
        for line in lines(folder):
            if "loss" in line:
                assert line["lr"] == lr_at(line["step"] - 1, training, steps=40, num_images=num_images)


LOSSES = METRICS[:-1]


def test_what_was_not_measured_is_null_and_not_zero() -> None:
    """A step that fp16 skipped has metrics but no gradient."""
    meter, ones = Meter(Accelerator(cpu=True), METRICS), dict.fromkeys(LOSSES, torch.ones(()))
    meter.add(0, ones)
    assert meter.take() == {**dict.fromkeys(LOSSES, 1.0), "grad_norm": None}
    for step in (1, 2):
        meter.add(step, ones)
    meter.add(2, {"grad_norm": torch.tensor(3.0)})
    assert meter.take()["grad_norm"] == 3.0


# ---------------------------------------------------------------------------------------------------- ranks and meters


def test_sums_of_another_number_of_ranks_are_their_mean() -> None:
    meter = Meter(Accelerator(cpu=True), METRICS)
    meter.load({"sums": torch.tensor([[1.0] * 6, [3.0] * 6]), "counts": [2] * 5 + [1]})
    assert meter.take() == {**dict.fromkeys(LOSSES, 1.0), "grad_norm": 2.0}


# ------------------------------------------------------------------------------------------------------------- updates


def test_the_average_counts_the_updates_that_were_made() -> None:
    """Of 100 steps fp16 may skip the first ones; the decay is warmed up over the others."""
    model = torch.nn.Linear(1, 1)
    ema = Ema(model, 0.99)
    with torch.no_grad():
        model.weight.fill_(1.0)
        ema.model.weight.fill_(0.0)  # type: ignore[operator]
    ema.update()
    assert ema.num_updates == 1
    assert float(ema.model.weight) == pytest.approx(0.9)  # type: ignore[arg-type]


@pytest.mark.process
def test_skipped_steps_are_no_updates_and_have_no_gradient(digits: Config, tmp_path: Path) -> None:
    out = run(train_job(digits, tmp_path / "train"), skip_first_steps)
    (last,) = (out / "checkpoints").glob("step-000000040.pt")
    assert torch.load(last, weights_only=True)["network"]["num_updates"] == 34
    assert [line["grad_norm"] is None for line in lines(out) if "loss" in line] == [True] + [False] * 7


# -------------------------------------------------------------------------------------------------------- power cuts


@pytest.mark.process
def test_metrics_are_on_the_disk_before_a_checkpoint_is(digits: Config, tmp_path: Path) -> None:
    run(train_job(digits, tmp_path / "train"), watch_the_disk)


# ------------------------------------------------------------------------------------------------------ what is read


def test_whitening_sees_all_classes_of_rows_that_are_sorted(
    digits: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeled = open_split(digits.data, "labeled")
    assert (np.diff(labeled.labels) >= 0).all()
    seen: list[int] = []
    read = Reader.read

    def spy(self: Reader, rows: np.ndarray) -> np.ndarray:
        seen.extend(labeled.labels[rows])
        return read(self, rows)

    monkeypatch.setattr(Reader, "read", spy)
    monkeypatch.setattr(setup, "NUM_FIRST_IMAGES", 40)
    here = setup.Setup(train_job(digits, tmp_path), Ranks(), {})
    assert len(here.first_images()[0]) == 40
    assert set(seen) == set(range(10))


# ---------------------------------------------------------------------------------------------------------- read ahead


def test_read_ahead_gives_every_item_in_order_and_takes_them_as_it_goes() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    pairs = read_ahead(endless(), lambda number: number**2)
    assert [next(pairs) for _ in range(5)] == [(n, n * n) for n in range(5)]
    assert taken == list(range(6))
    pairs.close()  # type: ignore[attr-defined]
    assert list(read_ahead([], abs)) == []


def test_read_ahead_raises_what_reading_raises_at_its_item() -> None:
    pairs = read_ahead([1, 0, 2], lambda number: 1 // number)
    assert next(pairs) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(pairs)
