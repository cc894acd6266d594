"""mixup and CutMix against loops over images and against scipy's Beta distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.processes import outputs, run, run_with_a_kill, train_job
from torch import Tensor

from pipeline.config import Config, Cutmix, Mixup, Training, changed, parse
from pipeline.errors import UserError
from pipeline.train.losses import hard_cross_entropy, smooth_one_hot, soft_cross_entropy
from pipeline.train.mixing import Mixing, beta_draws, cut, cut_boxes, mix, partners

NUM, SIZE, CLASSES = 32, 12, 5


def batch(seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.normal(size=(NUM, 3, SIZE, SIZE))).float()
    targets = torch.softmax(torch.from_numpy(random.normal(size=(NUM, CLASSES))), 1).float()
    return images, targets, np.arange(100, 100 + NUM, dtype=np.uint64)


def test_mixup_is_that_of_a_loop_over_images() -> None:
    images, targets, positions = batch()
    weight, partner = beta_draws(7, positions, 0.4), partners(8, positions)
    mixed, mixed_targets = mix(images, targets, torch.from_numpy(weight).float(), torch.from_numpy(partner))
    for i, (w, j) in enumerate(zip(weight, partner, strict=True)):
        torch.testing.assert_close(mixed[i], float(w) * images[i] + (1 - float(w)) * images[j])
        torch.testing.assert_close(mixed_targets[i], float(w) * targets[i] + (1 - float(w)) * targets[j])


def test_cutmix_is_that_of_a_loop_over_images() -> None:
    images, targets, positions = batch()
    boxes, partner = cut_boxes(7, positions, beta_draws(9, positions, 1.0), SIZE), partners(8, positions)
    mixed, mixed_targets = cut(images, targets, torch.from_numpy(boxes), torch.from_numpy(partner))
    for i, (top, bottom, left, right) in enumerate(boxes):
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = images[partner[i], :, top:bottom, left:right]
        stays = 1 - (bottom - top) * (right - left) / SIZE**2
        assert torch.equal(mixed[i], expected)
        torch.testing.assert_close(mixed_targets[i], stays * targets[i] + (1 - stays) * targets[partner[i]])


def test_cutmix_boxes_have_the_asked_area_where_they_are_not_clipped() -> None:
    share = np.full(4000, 0.75)
    boxes = cut_boxes(3, np.arange(4000, dtype=np.uint64), share, 64)
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    inside = (boxes > 0).all(1) & (boxes < 64).all(1)
    assert inside.mean() > 0.2
    assert set(height[inside]) == set(width[inside]) == {32}


@pytest.mark.parametrize("alpha", [0.2, 0.4, 0.75, 1.0])
def test_mixing_weights_are_beta_distributed(alpha: float) -> None:
    draws = beta_draws(5, np.arange(20_000, dtype=np.uint64), alpha)
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixed_targets_are_distributions_and_partners_a_permutation() -> None:
    images, targets, positions = batch()
    half = {"probability": 0.5}
    mixing = Mixing(Mixup(alpha=0.5, **half), Cutmix(**half), seed=1, round=0)
    _, mixed = mixing(images, targets, positions)
    torch.testing.assert_close(mixed.sum(1), torch.ones(NUM))
    assert sorted(partners(8, positions)) == list(range(NUM))


def test_mixup_and_cutmix_share_the_images_as_their_probabilities_say() -> None:
    positions = np.arange(4000, dtype=np.uint64)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(4000, 3, 4, 4))).float()
    mixing = Mixing(Mixup(alpha=1.0, probability=0.3), None, seed=1, round=0)
    mixed, _ = mixing(images, torch.zeros(4000, 2), positions)
    assert float((mixed != images).flatten(1).any(1).float().mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("which", [{"mixup": Mixup(), "cutmix": None}, {"mixup": None, "cutmix": Cutmix()}])
def test_mixing_is_a_function_of_seed_round_and_positions(which: dict[str, Any]) -> None:
    images, targets, positions = batch()
    first, again, other_round, other_seed = (
        Mixing(**which, seed=seed, round=number)(images, targets, positions)[0]
        for seed, number in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    elsewhere = Mixing(**which, seed=1, round=2)(images, targets, positions + np.uint64(NUM))[0]
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in (other_round, other_seed, elsewhere))


def test_weights_and_boxes_of_an_image_are_those_of_its_position_in_any_batch() -> None:
    positions = np.arange(100, 100 + NUM, dtype=np.uint64)
    share = beta_draws(7, positions, 0.4)
    np.testing.assert_array_equal(beta_draws(7, positions[5:9], 0.4), share[5:9])
    np.testing.assert_array_equal(cut_boxes(7, positions[5:9], share[5:9], 12), cut_boxes(7, positions, share, 12)[5:9])


def test_probabilities_above_one_together_are_an_error_that_names_both() -> None:
    with pytest.raises(UserError, match=r"mixup\.probability \(1\) and cutmix\.probability \(1\).*set both to 0\.5"):
        parse(Training, {"mixup": {}, "cutmix": {}}, "c.yaml")


def test_smoothed_one_hot_targets_give_the_loss_of_smoothed_labels() -> None:
    logits, labels = torch.randn(6, CLASSES), torch.tensor([0, 4, 2, 2, 1, 3])
    expected = hard_cross_entropy(logits, labels, 0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, smooth_one_hot(labels, CLASSES, 0.1)), expected)


def test_a_training_with_mixup_and_cutmix_resumes_bit_exact_after_a_kill(
    digits: Config, selection: Path, tmp_path: Path
) -> None:
    half = {"probability": 0.5}
    training = changed(digits.student, mixup=Mixup(alpha=0.5, **half), cutmix=Cutmix(**half))
    whole = run(train_job(digits, tmp_path / "whole", selection=selection, training=training))
    cut = run_with_a_kill(train_job(digits, tmp_path / "cut", selection=selection, training=training), 15)
    assert outputs(cut) == outputs(whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["unlabeled_loss"] > 0
