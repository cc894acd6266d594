"""The config of the two moons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Data, Meta, Section, Uda
from pipeline.config.base import Fraction, Positive


class TwoMoons(Section):
    """Small networks on points in the plane. All seeds are trained side by side."""

    seed: int = 0
    """The first seed."""
    data: Data = Data()
    """The points, as `python -m pipeline.demos.moons.data` packs them."""
    num_seeds: Positive = 20
    """Number of seeds, from `seed` on: of weights, batches and jitter."""
    threads: Positive = 2
    """CPU threads."""
    hidden: Positive = 8
    """Units in each of two hidden layers."""
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    """The activation between the layers."""
    init: Annotated[float, Field(gt=0)] = 0.1
    """Weights begin uniform in (-init, init)."""
    steps: Positive = 2000
    """Steps of each method."""
    batch_size: Positive = 128
    """Unlabeled points per step. The labeled ones are in every step, all of them."""
    jitter: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise of the strong view. The weak view is the point itself."""
    teacher_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of plain gradient descent, for every network that learns from labels or consistency."""
    student_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the students, which learn from pseudo-labels."""
    separated: Fraction = 0.99
    """Accuracy on test from which the moons count as separated."""
    uda: Uda = Uda(weight=1.0, ramp_steps=0, threshold=0.0, temperature=1.0)
    """The consistency loss."""
    meta: Meta = Meta()
    """The feedback."""

    @model_validator(mode="after")
    def _feedback_can_be_compared(self) -> TwoMoons:
        if self.meta.teacher != "network":
            raise ValueError("meta.teacher is adjuster, but points have no stored predictions; set it to network")
        if self.meta.feedback == "off":
            raise ValueError(
                "meta.feedback is off, which is a method of its own here; set the feedback to compare it with"
            )
        if self.meta.student_wait >= self.steps:
            raise ValueError(
                f"meta.student_wait ({self.meta.student_wait}) leaves nothing of steps ({self.steps}); lower it"
            )
        return self
