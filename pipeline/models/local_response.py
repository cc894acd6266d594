"""Local response normalization: a unit is damped by the units of the neighboring channels at its place."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def normalize_response(x: Tensor, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Activities [B, C, H, W] -> a / (k + alpha * s)^beta, where s is the sum of squares over the `n` channels around
    that of a, as many as there are (Krizhevsky 2012, section 3.3, whose constants are the defaults).

    torch's `local_response_norm` takes their mean, so its alpha is `n` times that of the paper. Here all is in fp32,
    because bf16 next to 2 has steps of 0.016, and so does not see most sums times 1e-4.
    """
    activities, around = x.float(), (n // 2, n - 1 - n // 2)
    squares = F.pad(activities.square(), (0, 0, 0, 0, *around))
    total = sum((squares[:, first : first + x.shape[1]] for first in range(1, n)), start=squares[:, : x.shape[1]])
    return (activities * (k + alpha * total).pow(-beta)).to(x.dtype)


class LocalResponseNorm(nn.Module):
    """`normalize_response` with the paper's constants, as a layer. It has no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Activities [B, C, H, W] -> the same shape, damped."""
        return normalize_response(x)
