"""What a training does about labeled classes of unequal size: it repeats the small ones, or adjusts its logits.

Shapes: N labeled images, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.arrays import F64Array, I32Array, U64Array
from pipeline.randomness import key_of
from pipeline.selection.rules import copies_of

Copies = npt.NDArray[np.integer]


def balanced_copies(labels: I32Array, ids: U64Array, num_classes: int, max_copies: int, seed: int) -> Copies:
    """How often each labeled image occurs per epoch, [N], so that each class has as many as the largest one.

    The copies of an image are a function of its id and the seed, and at most `max_copies`. A class with so few images
    that this does not suffice stays smaller.
    """
    counts = np.bincount(labels, minlength=num_classes)
    ratio = np.minimum(counts.max() / np.maximum(counts, 1), max_copies)
    return copies_of(ratio, labels, ids, key_of(seed, "balance")).astype(np.min_scalar_type(max_copies))


def shares_of(labels: I32Array, copies: Copies | None, num_classes: int) -> F64Array:
    """The share of each class in the labeled stream, [C]. A class without images counts as if it had one."""
    counts = np.maximum(np.bincount(labels, copies, num_classes), 1)
    return np.asarray(counts / counts.sum())


def adjust(logits: Tensor, num_labeled: int, adjustment: Tensor | None) -> Tensor:
    """Logits [..., B, C], to the first `num_labeled` of which an adjustment [C] is added; without one, they themselves.

    With tau * log(share) the loss is that of a classifier whose errors count alike in every class, and whose logits
    alone are used afterwards (Menon 2021, eq. 10).
    """
    if adjustment is None:
        return logits
    labeled, unlabeled = logits[..., :num_labeled, :], logits[..., num_labeled:, :]
    return torch.cat([labeled + adjustment, unlabeled], dim=-2)
