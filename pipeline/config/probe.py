"""The probe: a linear classifier on the stored features of a frozen encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Positive, Section, technique


class Probe(Section):
    """Multinomial logistic regression on the features of a frozen encoder, in place of a training (DINOv2, section 7.1;
    CLIP, appendix A.3). The encoder is `model` with the weights of `start`; it sees each image once."""

    c: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Inverse strength of the L2 penalty, as in scikit-learn, on features of unit variance. `auto` takes that of a grid
    from 1e-5 to 10 with which val is likeliest."""
    flip: bool = technique(False, off=False)
    """Whether features are the mean over an image and its mirror image, which doubles the time of the one pass. The
    teacher's must be that of `evaluate.flip`."""
    prior: Literal["labeled", "val"] = technique("labeled", off="labeled")
    """The shares of the classes that its predictions assume. `val` corrects them from those of the images that it was
    fitted on to those of val (Saerens 2002). Set it if labels were drawn evenly from uneven classes."""
    batch_size: Positive = 64
    """Images per forward pass of the encoder. It is part of the features' provenance. Lower it if they do not fit in
    memory."""
