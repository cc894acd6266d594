"""The small network that adjusts a big teacher's stored predictions (Reduced Meta Pseudo Labels)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALLEST = 1e-6
"""Probabilities are clamped to at least this, because stored ones can be 0."""


class Adjuster(nn.Module):
    """Adds the output of a two-layer network to log-probabilities (Pham 2021, appendix E).

    The last layer begins at 0, so that training begins with the teacher's own distribution.
    """

    def __init__(self, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_classes, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, probs: Tensor) -> Tensor:
        """Probabilities [U, C] -> logits [U, C]."""
        log_probs = torch.log(probs.clamp_min(_SMALLEST))
        correction: Tensor = self.fc2(F.relu(self.fc1(log_probs)))
        return log_probs + correction
