"""Multinomial logistic regression by Newton's method, with soft targets and weights.

Shapes: N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = tuple(10 ** (half / 2) for half in range(-10, 3))
"""The inverse strengths of the penalty that `c: auto` tries, 1e-5 to 10 in half decades."""
_TOLERANCE = 1e-6
"""On the gradient of the mean loss. At 1e-4 the accuracy on val of some strengths differs by single images; the
optimum of the weakest penalties is known to 4e-3 of a probability at 1e-6, and to 3e-2 at 1e-5."""
_MAX_STEPS, _MAX_PRODUCTS, _MAX_HALVINGS = 100, 200, 40
_NOISE = 1e-7  # of the loss, whose logits are products in float32
_CHUNK = 4096  # rows that are in float64 at a time


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
    """Fit one classifier per inverse strength c, each from those before it; yield them in that order.

    It minimizes c * sum_i w_i H(t_i, p_i) + |W|^2 / 2, as scikit-learn's LogisticRegression does, on features of zero
    mean and unit variance; the classifier that is returned reads them as they are. The bias is not penalized.

    The optimum lies in the span of the rows, so that of fewer rows than features only their coordinates in that span
    are fitted. Products with the rows are in float32, and take 4 bytes per row and feature; all else is in float64.

    Args:
        features: The features [N, D].
        targets: The targets, as probabilities [N, C].
        weights: The weights [N], such as the copies of each row.
        strengths: The values of c, from small to large.
    """
    targets, weights = targets.double(), weights.double()
    share = weights / weights.sum()
    mean, scale = _moments(features, share)
    varies = scale > 1e-3 * mean.abs()  # else it varies by what fp16 rounds, 5e-4, and has a weight of 0
    scale = torch.where(varies, scale, torch.inf)
    rows = torch.cat([((part.double() - mean) / scale).float() for part in features.split(_CHUNK)])
    span = None
    if len(rows) < rows.shape[1]:
        span, triangle = torch.linalg.qr(rows.double().T)  # rows = triangle^T span^T
        rows = triangle.T.float().contiguous()
    problem = _Problem(rows, targets, share)
    parameters = before = torch.zeros(targets.shape[1], rows.shape[1] + 1, dtype=torch.float64)
    for c in strengths:
        start = 2 * parameters - before  # along the line on which the two before it lie
        before, parameters = parameters, _minimize(problem, 1 / (c * float(weights.sum())), start)
        weight = parameters[:, :-1] if span is None else parameters[:, :-1] @ span.T
        weight = weight / scale
        yield Linear(weight, parameters[:, -1] - weight @ mean)


def _moments(features: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each feature, float64 [D], of rows with these shares of the weight."""
    parts = list(zip(share.split(_CHUNK), features.split(_CHUNK), strict=True))
    mean = torch.stack([of_part @ part.double() for of_part, part in parts]).sum(0)
    return mean, torch.stack([of_part @ (part.double() - mean) ** 2 for of_part, part in parts]).sum(0).sqrt()


@dataclass(frozen=True)
class _Problem:
    """What is fitted. Parameters are [C, D + 1], the bias last."""

    rows: Tensor
    """float32 [N, D]"""
    targets: Tensor
    """float64 [N, C]"""
    share: Tensor
    """Of the weight, float64 [N]."""

    def logits(self, parameters: Tensor) -> Tensor:
        """Parameters -> [N, C]; it is linear in them."""
        return (self.rows @ parameters[:, :-1].T.float()).double() + parameters[:, -1]

    def pulled_back(self, of_logits: Tensor) -> Tensor:
        """The gradient by logits [N, C] -> that by parameters."""
        weighted = self.share[:, None] * of_logits
        return torch.cat([(weighted.T.float() @ self.rows).double(), weighted.sum(0)[:, None]], dim=1)

    def loss(self, parameters: Tensor, penalty: float) -> tuple[float, Tensor]:
        """sum_i share_i H(t_i, p_i) + penalty |W|^2 / 2, and the probabilities p [N, C]."""
        log_probs = torch.log_softmax(self.logits(parameters), dim=1)
        cross_entropy = -(self.share * (self.targets * log_probs).sum(1)).sum()
        return float(cross_entropy + penalty / 2 * (parameters[:, :-1] ** 2).sum()), log_probs.exp()


def _minimize(problem: _Problem, penalty: float, start: Tensor) -> Tensor:
    """The parameters with the least loss, by Newton's method with conjugate gradients (Nocedal and Wright 2006,
    algorithm 7.1), preconditioned by the covariance of the rows, each weighted by how unsure it is at the start."""
    parameters = start
    value, probs = problem.loss(parameters, penalty)
    unsure = (problem.share * (probs * (1 - probs)).mean(1)).float()
    curvature = (problem.rows * unsure[:, None]).T @ problem.rows
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curvature + penalty * torch.eye(len(curvature))))
    penalties = torch.full_like(parameters, penalty)
    penalties[:, -1] = 0

    def precondition(gradient: Tensor) -> Tensor:
        return torch.cat([(gradient[:, :-1].float() @ inverse).double(), gradient[:, -1:] / unsure.sum()], dim=1)

    def curve(direction: Tensor) -> Tensor:
        """The Hessian times a direction."""
        of_probs = probs * problem.logits(direction)
        return problem.pulled_back(of_probs - probs * of_probs.sum(1, keepdim=True)) + penalties * direction

    for _ in range(_MAX_STEPS):
        gradient = problem.pulled_back(probs - problem.targets) + penalties * parameters
        if float(gradient.abs().max()) <= _TOLERANCE:
            break
        step = _solve(curve, precondition, -gradient)
        slope = float((gradient * step).sum())
        for halvings in range(_MAX_HALVINGS):
            candidate = parameters + step / 2**halvings
            found, probs = problem.loss(candidate, penalty)
            if found <= value + 1e-4 * slope / 2**halvings + _NOISE:
                break
        parameters, value = candidate, found
    return parameters


def _solve(product: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """About the x with product(x) = wanted, by preconditioned conjugate gradients, the closer the smaller `wanted`."""
    solution, residual = torch.zeros_like(wanted), wanted
    direction = better = precondition(residual)
    first = size = float((residual * better).sum())
    for _ in range(_MAX_PRODUCTS):
        image = product(direction)
        length = size / float((direction * image).sum())
        solution, residual = solution + length * direction, residual - length * image
        better = precondition(residual)
        before, size = size, float((residual * better).sum())
        if size <= min(0.1, first) * first or float(residual.abs().max()) <= _TOLERANCE:
            break
        direction = better + size / before * direction
    return solution
