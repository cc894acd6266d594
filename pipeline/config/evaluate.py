"""The evaluation of models."""

from __future__ import annotations

from pipeline.config.base import Positive, Section, technique


class Evaluate(Section):
    """How models are evaluated: on val while choices are made, and on test once they are fixed."""

    batch_size: Positive = 512
    """Images per forward pass. Lower it if they do not fit in memory."""
    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image, in all figures of the run, on val too."""
    control: bool = True
    """Whether to train a supervised control at the final student's budget, to report beside the final model. Turn it
    off to save the time of that training."""
