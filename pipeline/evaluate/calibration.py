"""The temperature of predictions, fitted so that a confidence is the share of right answers (Guo 2017, section 4.2).

Shapes: N samples, C classes.
"""

from __future__ import annotations

import logging

import torch
from torch.nn import functional as F

from pipeline.evaluate.metrics import FloatArray, IntArray

log = logging.getLogger("selftrain.evaluate")

BOUNDS = (0.05, 20.0)
"""The temperatures between which the fitted one stays."""


def fit_temperature(log_probs: FloatArray, labels: IntArray) -> float:
    """The temperature T with which softmax(log_probs / T) makes the labels likeliest, by L-BFGS on log T.

    Args:
        log_probs: Log-probabilities or logits [N, C].
        labels: The true classes [N].

    Returns:
        The temperature within BOUNDS; 1 where no answer is wrong, which makes ever lower ones likelier.
    """
    if (log_probs.argmax(1) == labels).all():
        log.warning("no answer on val is wrong, which tells no temperature; 1 is taken")
        return 1.0
    logits, target = torch.from_numpy(log_probs).double(), torch.from_numpy(labels).long()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log_temperature.exp(), target)
        value.backward()
        return value

    optimizer.step(loss)
    low, high = BOUNDS
    fitted = float(log_temperature.detach().exp())
    if not low < fitted < high:
        bounded = min(max(fitted, low), high) if fitted == fitted else 1.0
        log.warning(
            "the temperature that val asks for is %.3g; %.3g is taken: val is too small to tell", fitted, bounded
        )
        return bounded
    return fitted
