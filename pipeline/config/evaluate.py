"""The evaluation of models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import NonNegative, Positive, Section, operational, technique

Crops = Literal["center", "ten"]
Scale = Annotated[float, Field(gt=0, le=8)]


class Patches(Section):
    """The patches of an image over which a model's probabilities are averaged."""

    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image."""
    crops: Crops = technique("center", off="center")
    """The patches that the model sees: `center` is the centre square, and `ten` are also the four corners, all of them
    mirrored too (AlexNet 4.1), of images that are larger than the model's input: set `scales`, or `crop_pct` below 1.
    It takes ten times as long."""
    scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = technique((1.0,), off=(1.0,))
    """Sides at which images are read, in units of the model's own (its input size divided by `crop_pct`). The
    probabilities of all are averaged: 1, 1.143, 1.714, 2.143, 2.857 are the 224 to 640 pixels of ResNet. Each scale is
    a pass, and a decoding where nothing is cached."""


class Evaluate(Patches):
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
    model, which needs `dropout`, `block_dropout` or `dropout_at`. It chooses nothing. 20 is usual; 0 turns it off."""
    probe: bool = operational(True)
    """Whether to fit a probe on the encoder that a network starts from, to report beside the final model: what labels
    give without training. With `teacher.probe` the teacher is that probe already. Turn it off to save the pass over
    labeled and val images."""
    control: bool = True
    """Whether to train a supervised control at the final student's budget, to report beside the final model. Turn it
    off to save the time of that training."""
