"""The evaluation of models."""

from __future__ import annotations

from pipeline.config.base import NonNegative, Positive, Section, operational, technique


class Evaluate(Section):
    """How models are evaluated: on val while choices are made, and on test once they are fixed."""

    batch_size: Positive = 512
    """Images per forward pass. Lower it if they do not fit in memory."""
    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image, in all figures of the run, on val too."""
    dead_units: bool = operational(False)
    """Whether to count, in every evaluation of a training, the units that give zero for every image of val, as
    `dead_units` in its metrics. It takes one comparison per value. Turn it on if a network with ReLU learns nothing, or
    stops learning early after high learning rates."""
    ensemble: Positive = technique(1, off=1)
    """Number of models whose probabilities are averaged, to report on val and test beside the final model: the final
    one, students that were trained alike by other seeds (`rounds.judges`), then the kept students of earlier rounds,
    newest first. It chooses nothing. 1 turns it off."""
    mc_dropout: NonNegative = technique(0, off=0)
    """Number of passes with dropout on whose probabilities are averaged, to report on val and test beside the final
    model, which needs `dropout`. It chooses nothing. 20 is usual; 0 turns it off."""
    probe: bool = operational(True)
    """Whether to fit a probe on the encoder that a network starts from, to report beside the final model: what labels
    give without training. With `teacher.probe` the teacher is that probe already. Turn it off to save the pass over
    labeled and val images."""
    control: bool = True
    """Whether to train a supervised control at the final student's budget, to report beside the final model. Turn it
    off to save the time of that training."""
