"""The probe: a classifier on the stored features of a frozen encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Positive, Section, technique


class Probe(Section):
    """A classifier on the features of a frozen encoder, in place of a training (DINOv2, section 7.1; CLIP, appendix
    A.3). The encoder is `model` with the weights of `start`; it sees each image once."""

    classifier: Literal["logistic", "knn"] = technique("logistic", off="logistic")
    """`logistic` is multinomial logistic regression. `knn` lets the nearest labeled and pseudo-labeled images vote (Wu
    2018, section 3.4); how many, and at which temperature, is chosen on val. It makes no model, so it is for members of
    `committee` alone: beside a regression on the same encoder it makes other mistakes."""
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

    @model_validator(mode="after")
    def _neighbors_have_no_penalty(self) -> Probe:
        if self.classifier == "knn" and self.c != "auto":
            raise ValueError(
                f"c is {self.c:g}, but with classifier knn nothing is fitted that it could penalize; drop it, or set "
                "classifier to logistic"
            )
        return self
