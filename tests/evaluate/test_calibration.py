"""The temperature is the one that data was made with, and the likeliest."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.evaluate.calibration import BOUNDS, fit_temperature
from pipeline.evaluate.metrics import compute_metrics


def sampled(temperature: float, num: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn from their softmax at a temperature."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(num, 5)) * 3
    gumbel = random.gumbel(size=logits.shape)
    return logits, (logits / temperature + gumbel).argmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    logits, labels = sampled(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_makes_the_labels_likelier() -> None:
    logits, labels = sampled(1.7, 300)
    fitted = fit_temperature(logits, labels)
    grid = [
        F.cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(labels)).item()
        for t in (fitted, *np.geomspace(*BOUNDS, 400))
    ]
    assert min(grid) == grid[0]


def test_it_lowers_the_calibration_error_of_a_sure_model() -> None:
    logits, labels = sampled(3.0)
    log_probs = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
    cooled = torch.log_softmax(torch.from_numpy(logits / fit_temperature(logits, labels)), 1).numpy()
    assert compute_metrics(cooled, labels).ece < 0.02 < compute_metrics(log_probs, labels).ece


def test_without_a_wrong_answer_predictions_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(np.eye(4) * 3, np.arange(4)) == 1
    assert "no answer on val is wrong" in caplog.text
