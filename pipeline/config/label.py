"""The teacher's pass over the unlabeled images."""

from __future__ import annotations

from pipeline.config.base import Positive, Section, technique


class Label(Section):
    """The teacher's pass over the unlabeled images."""

    batch_size: Positive = 512
    """Images per forward pass. It is part of the fingerprint, because kernels, and with them the last bits, depend on
    it."""
    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image. It doubles the time."""
    ensemble: Positive = technique(1, off=1)
    """Average the probabilities of the teachers of this many last rounds."""
    top_k: Positive = 10
    """Classes stored per image; all of them when there are no more than this."""
