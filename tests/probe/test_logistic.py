"""The logistic regression against scikit-learn's, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from pipeline.features.neighbors import vote
from pipeline.probe.logistic import GRID, fit_path


def problem(num_rows: int, num_features: int, num_classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(7)
    labels = random.permutation(np.arange(num_rows) % num_classes)
    centres = random.normal(size=(num_classes, num_features))
    features = 3 * (0.5 * centres[labels] + random.normal(size=(num_rows, num_features))) + 2
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


@pytest.mark.parametrize(("num_rows", "num_features"), [(40, 120), (300, 12)], ids=["wide", "tall"])
@pytest.mark.parametrize("c", [0.001, 1.0])
def test_it_is_scikit_learns_on_standardized_features(num_rows: int, num_features: int, c: float) -> None:
    """Rows fewer than features are fitted in their span, which must change nothing."""
    features, labels = problem(num_rows, num_features)
    [found] = fit_path(features, F.one_hot(labels).float(), torch.ones(num_rows), [c])
    standard = features.double().numpy()
    standard = (standard - standard.mean(0)) / standard.std(0)
    expected = LogisticRegression(C=c, tol=1e-10, max_iter=20_000).fit(standard, labels.numpy())
    np.testing.assert_allclose(found.log_probs(features).exp(), expected.predict_proba(standard), atol=2e-5)


def test_a_row_far_from_all_others_is_fitted_as_scikit_learn_does() -> None:
    """There a full step of Newton's method overshoots, and those after it all the more."""
    features, labels = problem(300, 12)
    features[:5] *= 100
    copies = torch.ones(300)
    copies[0] = 50
    [found] = fit_path(features, F.one_hot(labels).float(), copies, [1e3])
    scaler = StandardScaler().fit(features.double().numpy(), sample_weight=copies.numpy())
    standard = scaler.transform(features.double().numpy())
    model = LogisticRegression(C=1e3, tol=1e-10, max_iter=20_000)
    expected = model.fit(standard, labels.numpy(), sample_weight=copies.numpy())
    np.testing.assert_allclose(found.log_probs(features).exp(), expected.predict_proba(standard), atol=1e-3)


def test_weights_are_copies_of_rows() -> None:
    features, labels = problem(60, 9)
    targets, copies = F.one_hot(labels).float(), torch.arange(60) % 3 + 1
    [weighted] = fit_path(features, targets, copies.float(), [0.1])
    rows = torch.repeat_interleave(torch.arange(60), copies)
    [repeated] = fit_path(features[rows], targets[rows], torch.ones(len(rows)), [0.1])
    np.testing.assert_allclose(weighted.log_probs(features).exp(), repeated.log_probs(features).exp(), atol=1e-3)


def test_soft_targets_are_a_weighted_mix_of_hard_ones() -> None:
    features, labels = problem(50, 7)
    targets = 0.7 * F.one_hot(labels, 4).float() + 0.3 * F.one_hot((labels + 1) % 4, 4).float()
    [soft] = fit_path(features, targets, torch.ones(50), [0.1])
    twice = torch.cat([features, features])
    hard = torch.cat([F.one_hot(labels, 4), F.one_hot((labels + 1) % 4, 4)]).float()
    [mixed] = fit_path(twice, hard, torch.cat([torch.full((50,), 0.7), torch.full((50,), 0.3)]), [0.1])
    np.testing.assert_allclose(soft.log_probs(features).exp(), mixed.log_probs(features).exp(), atol=1e-3)


def test_a_path_ends_where_a_fit_from_zero_ends() -> None:
    features, labels = problem(80, 30)
    targets = F.one_hot(labels).float()
    *_, last = fit_path(features, targets, torch.ones(80), GRID[:7])
    [alone] = fit_path(features, targets, torch.ones(80), [GRID[6]])
    np.testing.assert_allclose(last.log_probs(features).exp(), alone.log_probs(features).exp(), atol=1e-3)


def test_a_feature_that_never_varies_changes_nothing() -> None:
    features, labels = problem(60, 5)
    targets = F.one_hot(labels).float()
    [found] = fit_path(F.pad(features, (0, 1), value=4.0), targets, torch.ones(60), [1.0])
    [expected] = fit_path(features, targets, torch.ones(60), [1.0])
    assert found.weight[:, -1].abs().max() < 1e-9
    np.testing.assert_allclose(found.bias, expected.bias, atol=2e-3)


def test_neighbors_vote_by_cosine_and_softly() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    targets = torch.eye(3)
    votes = vote(bank, targets, torch.tensor([[5.0, 0.0]]), neighbors=2)
    strength = np.exp(np.array([1.0, np.sqrt(0.5)]) / 0.07)
    np.testing.assert_allclose(
        votes[0], [*(strength / strength.sum())[:1], 0, (strength / strength.sum())[1]], atol=2e-3
    )
