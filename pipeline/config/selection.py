"""The choice of pseudo-labels."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from pipeline.config.base import Fraction, NonNegative, Positive, Section, off_is_a_word, technique


class Select(Section):
    """Which pseudo-labels train the student, and how often (Noisy Student, section 2)."""

    threshold: Fraction = technique(0.0, off=0.0)
    """Keep an image if its confidence is at least this. Raise it to 0.3 or more for images that may show anything."""
    per_class: NonNegative = technique(0, off=0)
    """Keep at most this many images per class, the surest first. 0 keeps all."""
    balance: Literal["off", "uniform", "prior"] = technique("uniform", off="off")
    """Duplicate images of rare classes up to `per_class` images, or up to the size of the largest class. `uniform`
    gives every class the same number, `prior` a number in proportion to `prior`, `off` duplicates nothing."""
    prior: tuple[float, ...] = ()
    """Share of each class with `balance: prior`. Empty means the shares among the labeled images."""
    max_copies: Positive = 5
    """No image appears more often than this per epoch."""
    allow_empty_classes: bool = False
    """Whether a class may end up without any pseudo-label. Unless this is set, that is an error."""

    _off = field_validator("balance", mode="before")(off_is_a_word)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Select:
        if self.prior and self.balance != "prior":
            raise ValueError(f"prior is set, but balance is {self.balance}, which ignores it; set balance to prior")
        return self
