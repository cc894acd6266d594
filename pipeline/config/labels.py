"""The teacher's pass, and the choice of its pseudo-labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fraction, NonNegative, Positive, Section, off_is_a_word


class Label(Section):
    """The teacher's pass over the unlabeled images."""

    batch_size: Positive = 512
    """Images a forward pass. Semantic: kernels, and so the last bits, depend on it."""
    flip: bool = False
    """Average the probabilities of the image and its mirror."""
    ensemble: Positive = 1
    """Average the probabilities of the teachers of this many last rounds."""
    top_k: Positive = 10
    """Classes stored per image; all of them when there are no more than this."""


class Select(Section):
    """Which pseudo-labels train the student, and how often (Noisy Student, section 2)."""

    threshold: Fraction = 0.0
    """Keep an image if its confidence is at least this."""
    per_class: NonNegative = 0
    """Keep at most this many images a class, the surest first. 0 keeps all."""
    balance: Literal["off", "uniform", "prior"] = "uniform"
    """Duplicate images of rare classes up to `per_class` (or up to the largest class): `uniform` for every class
    alike, `prior` in proportion to `prior`."""
    prior: tuple[float, ...] = ()
    """Share of each class, with `balance: prior`. Empty means the labeled set's."""
    max_copies: Positive = 5
    """No image appears more often than this in an epoch."""
    targets: Literal["soft", "hard"] = "soft"
    """Train on the teacher's probabilities or on its argmax."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Soft targets are p^(1/temperature), renormalized."""
    allow_empty_classes: bool = False
    """A class of which nothing is kept is an error unless this is set."""

    _off = field_validator("balance", mode="before")(off_is_a_word)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Select:
        if self.prior and self.balance != "prior":
            raise ValueError(f"prior is set, but balance is {self.balance}, which ignores it; set balance to prior")
        if self.temperature != 1 and self.targets == "hard":
            raise ValueError(
                f"temperature is {self.temperature}, but hard targets have none; set targets to soft, or drop it"
            )
        return self
