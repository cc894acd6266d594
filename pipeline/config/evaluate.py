"""How models are evaluated."""

from __future__ import annotations

from pipeline.config.base import Positive, Section, technique


class Evaluate(Section):
    """How models are evaluated, on val while choices are made and on test once they are fixed."""

    batch_size: Positive = 512
    """Images per forward pass."""
    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image, in every figure of the run (val too)."""
    control: bool = True
    """Train a supervised control at the final student's budget and report it beside the final model."""
