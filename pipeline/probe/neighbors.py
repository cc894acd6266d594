"""The k nearest neighbors of features, as a second opinion that fits nothing.

Shapes: N rows of the bank, M rows asked for, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""That of Wu 2018, section 3.4, which DINO took over."""
_ROWS = 1024  # of those asked for, at a time


def vote(bank: Tensor, targets: Tensor, features: Tensor, neighbors: int = 20) -> Tensor:
    """The share of votes of each class, [M, C], by the nearest rows of a bank (Wu 2018, section 3.4).

    A neighbor votes with exp(cosine / 0.07).

    Args:
        bank: The features whose targets are known, [N, D].
        targets: Their targets, as probabilities [N, C].
        features: The features that are asked for, [M, D].
        neighbors: The number of neighbors; all rows of the bank if there are fewer.
    """
    known = F.normalize(bank.float(), dim=1)
    votes = []
    for part in features.split(_ROWS):
        cosine, nearest = (F.normalize(part.float(), dim=1) @ known.T).topk(min(neighbors, len(bank)), dim=1)
        strength = torch.softmax(cosine / TEMPERATURE, dim=1)
        votes.append((strength[:, :, None] * targets[nearest].float()).sum(1))
    return torch.cat(votes)
