"""The choice of pseudo-labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Fraction, NonNegative, Positive, Section, off_is_a_word, technique


class Select(Section):
    """The pseudo-labels that train the student, and how often each occurs (Noisy Student, section 2)."""

    threshold: Fraction | Literal["adaptive"] = technique(0.0, off=0.0)
    """Keep an image if its confidence is at least this. Raise it to 0.3 or more for images that may show anything.
    `adaptive` sets a threshold per class and round: the mean confidence of the images that are taken for the class. It
    suits teachers that are surer of some classes than of others."""
    share: Annotated[float, Field(gt=0, le=1)] = technique(1.0, off=1.0)
    """Keep this share of the images that are taken for each class and reach `threshold`, the surest first. Set it if
    confidences are flat, so that no threshold fits all classes. 1 keeps all."""
    per_class: NonNegative = technique(0, off=0)
    """Keep at most this many images per class, the surest first. Set it to leave out the least sure ones of frequent
    classes. 0 keeps all."""
    align: bool = technique(False, off=False)
    """Multiply the teacher's probabilities so that their mean over the unlabeled images has the shares of `prior`
    (distribution alignment). It changes labels, confidences and soft targets, not the stored labels. Turn it on if the
    teacher prefers some classes."""
    balance: Literal["off", "uniform", "prior"] = technique("uniform", off="off")
    """Duplicate images of rare classes. `uniform` gives each class the same number, which is `per_class` or the size of
    the largest class. `prior` gives each class a number in proportion to `prior`. `off` duplicates nothing. Take
    `prior` if the classes are uneven in truth."""
    prior: tuple[float, ...] = ()
    """Shares of the classes, in their order, with `balance: prior` or `align`. Empty means the shares among labeled
    images."""
    max_copies: Positive = 5
    """An image occurs at most this often per epoch. Lower it if a class has so few images that copies would be learned
    by heart."""
    allow_empty_classes: bool = False
    """Whether a class may be left without any pseudo-label. If not, that is an error. Set it if a class may be missing
    among unlabeled images."""

    _off = field_validator("balance", mode="before")(off_is_a_word)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Select:
        if self.prior and self.balance != "prior" and not self.align:
            raise ValueError(
                f"prior is set, but balance is {self.balance}, which ignores it; set balance to prior, or align to true"
            )
        return self
