"""The teacher's pass over the unlabeled images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Positive, Section, technique
from pipeline.config.data import APath
from pipeline.config.evaluate import Patches


class OtherLabels(Section):
    """Labels from elsewhere, which are averaged with the teacher's."""

    labels: APath
    """A label stage of another run, or a table of scores: CSV, TSV or Parquet with a column `image`, the key or file
    name, and one column per class, by its name. Rows that sum to 1 are probabilities, others are logits."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight in the mean, beside the teacher's, which is 1."""


class Label(Patches):
    """The teacher's pass over the unlabeled images."""

    batch_size: Positive = 512
    """Images per forward pass. It is part of the fingerprint, because the choice of kernels, and with it the last bits,
    depends on it. Lower it if they do not fit in memory."""
    flip: bool = technique(False, off=False)
    """Average the probabilities of each image and its mirror image. This doubles the time."""
    ensemble: Positive = technique(1, off=1)
    """Average the probabilities of this many teachers, the newest ones. 1 uses the newest alone. Each of them labels
    all images, which costs time."""
    temperature: Annotated[float, Field(gt=0)] | Literal["auto"] = technique(1.0, off=1.0)
    """Temperature of the predictions before anything is stored. `auto` fits it on val, of each teacher and then of
    their mean, so that a confidence is the share of right labels (Guo 2017). Set `auto` wherever a threshold decides.
    """
    others: tuple[OtherLabels, ...] = technique((), off=())
    """Labels of other teachers, such as other encoders' or a zero-shot model's, averaged with the teacher's own without
    another pass over the images."""
    top_k: Positive = 10
    """Number of classes stored per image, the likeliest first; all classes if there are no more than this. The
    probability of the others is spread evenly; raise it for soft targets of hundreds of classes."""
