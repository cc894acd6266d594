"""Repeated images of rare classes, and adjusted logits, each against its definition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.learners import learner_of
from support.processes import method_job, train_job
from torch import Tensor

from pipeline.config import Config, Finetune, Training, changed, parse
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.methods.noisy_student.learner import PseudoLabelLearner
from pipeline.models.format import ModelInfo
from pipeline.randomness import key_of, uniforms
from pipeline.runs.finetune import finetuning
from pipeline.shards.order import Order
from pipeline.stages.jobs import TrainJob
from pipeline.train.batches import Batch
from pipeline.train.class_sizes import adjust, balanced_copies, shares_of
from pipeline.train.learner import Learner

# -------------------------------------------------------------------------------------------------------------- copies


def labels_of(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    return labels, rng.integers(0, 2**64, len(labels), np.uint64)


def test_every_class_is_met_as_often_as_the_largest_up_to_the_cap() -> None:
    labels, ids = labels_of([400, 130, 90, 2])
    met = [np.bincount(labels, balanced_copies(labels, ids, 4, 100, seed)) for seed in range(20)]
    # A binomial count of at most 130 rows has a deviation of at most 5.7, the mean of 20 one of 1.3.
    assert np.abs(np.mean(met, axis=0) - [400, 400, 400, 200]).max() < 5 * 1.3
    assert np.bincount(labels, balanced_copies(labels, ids, 4, 3, seed=0))[3] == 6


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any), st.integers(2, 300), st.integers(0, 99))
def test_the_copies_of_an_image_are_a_function_of_its_id(counts: list[int], most: int, seed: int) -> None:
    labels, ids = labels_of(counts, seed)
    copies = balanced_copies(labels, ids, len(counts), most, seed)
    ratio = np.minimum(max(counts) / np.array(counts, float)[labels], most)
    draw = uniforms(key_of(seed, "balance"), ids)[:, 0]
    np.testing.assert_array_equal(copies, np.floor(ratio) + (draw < ratio % 1))
    order = np.random.default_rng(seed).permutation(len(ids))
    np.testing.assert_array_equal(copies[order], balanced_copies(labels[order], ids[order], len(counts), most, seed))
    assert copies.min() >= 1
    epoch = Order(np.array([0, len(ids)]), copies, seed=seed, stream="labeled", round=0)
    assert Counter(epoch.rows(0, epoch.epoch_size).tolist()) == Counter(dict(enumerate(copies.tolist())))


def test_the_labeled_stream_of_a_training_has_these_copies(digits: Config, tmp_path: Path) -> None:
    whole = learner_of(train_job(digits, tmp_path)).batches.labeled
    job = train_job(digits, tmp_path, training=changed(digits.teacher, balance_labeled=7))
    stream = learner_of(job).batches.labeled
    dataset = stream.dataset
    copies = balanced_copies(dataset.labels, dataset.ids, len(dataset.classes), 7, digits.seed)
    assert stream.order.epoch_size == copies.sum()
    assert whole.order.epoch_size == len(dataset)


# -------------------------------------------------------------------------------------------------------------- logits


def test_the_shares_are_those_of_the_stream_and_never_zero() -> None:
    labels = np.array([0, 0, 0, 2], np.int32)
    np.testing.assert_allclose(shares_of(labels, None, 3), np.array([3, 1, 1]) / 5)
    np.testing.assert_allclose(shares_of(labels, np.array([1, 1, 1, 3]), 3), np.array([3, 1, 3]) / 7)


@pytest.mark.parametrize("method", ["noisy_student", "uda", "fixmatch", "meta"])
def test_the_labeled_loss_of_every_learner_is_that_of_adjusted_logits(
    digits: Config, tmp_path: Path, method: str
) -> None:
    """The first measured loss against numpy, from the logits that the network gave."""
    learner, batch, logits = first_step(job_of(digits, tmp_path, method))
    z = logits[: batch.num_labeled].double().numpy() + 1.5 * np.log(UNEVEN)
    expected = -(z[np.arange(len(z)), batch.labels] - np.log(np.exp(z).sum(1))).mean()
    assert learner.meter.take()["labeled_loss"] == pytest.approx(expected, rel=1e-5)


def test_mixed_labeled_images_are_adjusted_and_unlabeled_ones_are_not(
    digits: Config, selection: Path, tmp_path: Path
) -> None:
    training = changed(digits.student, **HOW, mixup={"alpha": 0.5, "probability": 1.0})
    mixed: list[Tensor] = []
    learner, batch, logits = first_step(train_job(digits, tmp_path, selection=selection, training=training), mixed)
    z = logits.double().numpy()
    z[: batch.num_labeled] += 1.5 * np.log(UNEVEN)
    losses = -(mixed[0].double().numpy() * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)
    measured = learner.meter.take()
    assert measured["labeled_loss"] == pytest.approx(losses[: batch.num_labeled].mean(), rel=1e-5)
    assert measured["unlabeled_loss"] == pytest.approx(losses[batch.num_labeled :].mean(), rel=1e-5)


UNEVEN = np.linspace(0.02, 0.18, 10)
"""Shares of classes. Those of the digits are even, which would adjust nothing."""
HOW = {"logit_adjustment": 1.5, "label_smoothing": 0.0, "stochastic_depth": 0.0, "dropout": 0.0}


def first_step(job: TrainJob, mixed: list[Tensor] | None = None) -> tuple[Learner, Batch, Tensor]:
    """A learner after its first step with uneven shares, the batch, and the logits of its labeled loss."""
    learner = learner_of(job)
    network = learner.networks.get("teacher", learner.model)
    even, labeled = network.adjustment, learner.setup.labeled
    assert even is not None
    shares = shares_of(labeled.labels, None, len(labeled.classes))
    np.testing.assert_allclose(even, 1.5 * np.log(shares), rtol=1e-6)
    network.adjustment = torch.from_numpy(1.5 * np.log(UNEVEN)).float()
    seen: list[Tensor] = []
    network.raw_model.register_forward_hook(lambda module, given, logits: seen.append(logits.detach()))
    if mixed is not None:
        assert isinstance(learner, PseudoLabelLearner)
        mix = learner.mixing
        assert mix is not None

        def recorded(*given: Any) -> tuple[Tensor, Tensor]:
            views, targets = mix(*given)
            mixed.append(targets)
            return views, targets

        learner.mixing = recorded  # type: ignore[assignment]
    batch = next(iter(learner.batches.from_step(0, 1)))
    learner.update(0, [batch])
    return learner, batch, seen[0]


def job_of(digits: Config, out: Path, method: str) -> TrainJob:
    if method == "noisy_student":
        return train_job(digits, out, training=changed(digits.teacher, **HOW))
    raw = digits.model_dump(mode="json", include={"data", "student", "runtime"})
    unread = {"targets", "target_temperature", "mixup", "cutmix", "loss_normalization"}
    raw["student"] = {name: value for name, value in raw["student"].items() if name not in unread}
    raw["student"] |= {**HOW, "noise_labeled": False}
    if "teacher" in METHOD_CONFIGS[method].reads:
        raw["teacher"] = {"model": "wide_resnet10_1", **HOW}
    return method_job(parse(Config, {"method": method, **raw}, method), out)


def test_without_an_adjustment_the_logits_are_the_same_object() -> None:
    logits = torch.zeros(6, 3)
    assert adjust(logits, 4, None) is logits


def test_a_fine_tune_keeps_what_its_model_did_about_class_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo(
        schema=1,
        architecture="resnet9",
        model_args={},
        classes=("a", "b"),
        input_size=(3, 8, 8),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        metrics={},
        lineage={},
    )
    monkeypatch.setattr("pipeline.runs.finetune.read_info", lambda path: info)
    found = finetuning(Finetune(image_size=32), Path("model"), Training(balance_labeled=9, logit_adjustment=1.0))
    assert (found.balance_labeled, found.logit_adjustment) == (9, 1.0)
