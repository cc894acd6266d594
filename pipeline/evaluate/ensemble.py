"""Ensembles: the mean of the probabilities of several models (Krizhevsky 2012, section 6 and tables 1 and 2).

Shapes: N samples, C classes, B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.arrays import F32Array, I64Array
from pipeline.errors import UserError
from pipeline.evaluate.predictor import mean_logits
from pipeline.models.format import model_digest


def mean_log_probs(members: Sequence[F32Array]) -> F32Array:
    """The logarithm of the mean probability of several models, float32 [N, C], of their log-probabilities [N, C].

    It is computed in float64, so the order of the members changes nothing that is kept.
    """
    mean = mean_logits([torch.from_numpy(member).double() for member in members])
    result: F32Array = mean.float().numpy()
    return result


def check_others(paths: Sequence[Path]) -> None:
    """Refuse models of which one is another, at the same path or elsewhere, such as a run and its final stage.

    Raises:
        UserError: there is such a model, which would count double, or none at a path.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if (first := found.get(own := model_digest(path))) is not None:
            raise UserError(f"--with {path} names {first} twice, which would count double; name each model once")
        found[own] = path


def columns_of(theirs: Sequence[str], ours: Sequence[str], model: Path, first: Path) -> I64Array:
    """The columns [C] of a model's answers in the order of the first model's classes; they are matched by name.

    Raises:
        UserError: the two models do not know the same classes.
    """
    if set(theirs) != set(ours):
        other = sorted(set(theirs) ^ set(ours))[0]
        who, whom = (model, first) if other in theirs else (first, model)
        raise UserError(
            f"{model} and {first} know different classes: only {who} knows {other!r}, and {whom} does not, so their "
            "answers cannot be averaged; choose models of the same classes"
        )
    return np.array([list(theirs).index(name) for name in ours], np.int64)
