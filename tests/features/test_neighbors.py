"""The classifier by nearest neighbors against scikit-learn's, its ties, its choice on val, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.features.neighbors import Neighbors, neighbors_digest, read_neighbors, write_neighbors
from pipeline.models.format import NEIGHBORS, load_model
from pipeline.probe.stage import best_of
from pipeline.probe.voting import NUMBERS, TEMPERATURES, try_votes

LABELS = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(120) % 4))
CENTRES = np.random.default_rng(1).normal(size=(4, 12))


def features(seed: int) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(120, 12))
    return torch.from_numpy(CENTRES[LABELS] + 1.5 * noise).half()


def classifier(neighbors: int = 7, temperature: float = 0.1) -> Neighbors:
    targets = F.one_hot(LABELS).float()
    return Neighbors(features(2), targets, torch.ones(120), torch.zeros(4), neighbors, temperature, tuple("abcd"))


def by_scikit_learn(neighbors: int, temperature: float, asked: torch.Tensor) -> np.ndarray:
    """Its shares of votes, and one neighbor more of every class alike."""
    model = KNeighborsClassifier(
        neighbors, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / temperature)
    ).fit(features(2).double().numpy(), LABELS.numpy())
    return (neighbors * model.predict_proba(asked.double().numpy()) + 1 / 4) / (neighbors + 1)


@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 0.1), (7, 0.1), (20, 0.02), (120, 0.5)])
def test_shares_of_votes_are_those_of_scikit_learn(neighbors: int, temperature: float) -> None:
    found = classifier(neighbors, temperature).log_probs(features(3).float())
    expected = by_scikit_learn(neighbors, temperature, features(3))
    np.testing.assert_allclose(found.exp(), expected, atol=1e-4)


def test_number_and_temperature_are_those_with_which_val_is_likeliest_by_scikit_learn() -> None:
    tried = list(try_votes(classifier(), features(3).float(), LABELS.numpy()))
    expected = {
        (number, temperature): log_loss(LABELS.numpy(), by_scikit_learn(number, temperature, features(3)))
        for number in NUMBERS
        for temperature in TEMPERATURES
    }
    found = {(one.classifier.neighbors, one.classifier.temperature): one.metrics.nll for one in tried}
    assert found == pytest.approx(expected, abs=1e-4)
    best = best_of(tried).classifier
    assert (best.neighbors, best.temperature) == min(expected, key=lambda key: expected[key])
    np.testing.assert_array_equal(best.log_probs(features(3).float()), best_of(tried).log_probs)


def test_a_weight_is_that_many_copies_of_a_row_and_votes_once_as_a_neighbor() -> None:
    copies = torch.arange(120) % 3 + 1
    found = replace(classifier(120), weights=copies.float()).log_probs(features(3).float())
    rows = torch.repeat_interleave(torch.arange(120), copies)
    base = classifier(len(rows))
    repeated = replace(base, bank=base.bank[rows], targets=base.targets[rows], weights=torch.ones(len(rows)))
    shares = [
        (one.exp() * (k + 1) - 1 / 4) / k for one, k in ((found, 120), (repeated.log_probs(features(3)), len(rows)))
    ]
    np.testing.assert_allclose(*shares, atol=1e-5)


def test_of_equally_near_rows_the_first_ones_vote() -> None:
    bank = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [4.0, 0.0], [0.0, 2.0]]).half()
    targets = torch.eye(5)
    tied = Neighbors(bank, targets, torch.ones(5), torch.zeros(5), 2, 0.1, tuple("abcde"))
    votes = tied.log_probs(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).exp() * 3 - 1 / 5
    np.testing.assert_allclose(votes, [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], atol=1e-5)


def test_the_file_is_the_classifier_and_its_digest_tells_what_it_is_made_of(tmp_path: Path) -> None:
    made = classifier()
    made.log_probs(features(3))  # what it computed by the way is no part of it
    others = [
        replace(made, neighbors=8),
        replace(made, temperature=0.2),
        replace(made, bank=features(4)),
        replace(made, targets=made.targets.flip(1)),
        replace(made, classes=tuple("abce")),
    ]
    digests = set()
    for number, one in enumerate([made, *others]):
        (tmp_path / str(number)).mkdir()
        write_neighbors(tmp_path / str(number), one)
        read = read_neighbors(tmp_path / str(number))
        np.testing.assert_array_equal(read.log_probs(features(3)), one.log_probs(features(3)))
        assert read.classes == one.classes
        digests.add(neighbors_digest(tmp_path / str(number)))
    assert len(digests) == 6
    (tmp_path / "0" / NEIGHBORS).write_bytes(b"PK")
    with pytest.raises(UserError, match=rf"{NEIGHBORS} cannot be read .*type the command of the run again"):
        read_neighbors(tmp_path / "0")


def test_where_a_model_is_asked_for_the_error_names_the_fix(tmp_path: Path) -> None:
    write_neighbors(tmp_path, classifier())
    with pytest.raises(UserError, match=r"a probe by nearest neighbors is none; set probe\.classifier to logistic"):
        load_model(tmp_path)
