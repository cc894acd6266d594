"""Multinomial logistic regression by L-BFGS, with soft targets and weights.

Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = tuple(10 ** (half / 2) for half in range(-10, 3))
"""The inverse strengths of the penalty that `c: auto` tries, 1e-5 to 10 in half decades."""
_MAX_STEPS = 200
_TOLERANCE = 1e-5
"""On the gradient of the mean loss. At 1e-4 the accuracy on val of some strengths differs by single images."""


@dataclass(frozen=True)
class Linear:
    """A linear classifier on features as they are stored."""

    weight: Tensor
    """float64 [C, D]"""
    bias: Tensor
    """float64 [C]"""

    def log_probs(self, features: Tensor) -> Tensor:
        """Features [N, D] -> log-probabilities float64 [N, C]."""
        return torch.log_softmax(features.double() @ self.weight.T + self.bias, dim=1)


def fit_path(features: Tensor, targets: Tensor, weights: Tensor, strengths: Sequence[float]) -> Iterator[Linear]:
    """Fit one classifier per inverse strength c, each from the one before it; yield them in that order.

    It minimizes c * sum_i w_i H(t_i, p_i) + |W|^2 / 2, as scikit-learn's LogisticRegression does, on features of zero
    mean and unit variance; the classifier that is returned reads them as they are. The bias is not penalized.

    The optimum lies in the span of the rows, so that of fewer rows than features only their coordinates in that span
    are fitted. All is in float64, and takes 8 bytes per row and feature.

    Args:
        features: The features [N, D].
        targets: The targets, as probabilities [N, C].
        weights: The weights [N], such as the copies of each row.
        strengths: The values of c, from small to large.
    """
    features, targets, weights = features.double(), targets.double(), weights.double()
    share = weights / weights.sum()
    mean = share @ features
    scale = (share @ (features - mean) ** 2).sqrt()
    varies = scale > 1e-3 * mean.abs()  # else it varies by what fp16 rounds, 5e-4, and has a weight of 0
    scale = torch.where(varies, scale, torch.ones_like(scale))
    rows = torch.where(varies, (features - mean) / scale, torch.zeros_like(features))
    span = None
    if len(rows) < rows.shape[1]:
        span, triangle = torch.linalg.qr(rows.T)  # rows = triangle^T span^T
        rows = triangle.T.contiguous()
    parameters = torch.zeros(targets.shape[1], rows.shape[1] + 1, dtype=torch.float64)
    for c in strengths:
        parameters = _minimize(rows, targets, share, 1 / (c * float(weights.sum())), parameters)
        weight = parameters[:, :-1] if span is None else parameters[:, :-1] @ span.T
        weight = weight / scale
        yield Linear(weight, parameters[:, -1] - weight @ mean)


def _minimize(rows: Tensor, targets: Tensor, share: Tensor, penalty: float, start: Tensor) -> Tensor:
    """The parameters [C, D + 1], the bias last, that minimize sum_i share_i H(t_i, p_i) + penalty |W|^2 / 2."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=_MAX_STEPS,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        log_probs = F.log_softmax(torch.addmm(bias, rows, weight.T), dim=1)
        value = -(share * (targets * log_probs).sum(1)).sum() + penalty / 2 * (weight**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return parameters.detach()
