"""The config of the two moons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Data, Meta, Section, Uda
from pipeline.config.base import Fraction, Positive


class TwoMoons(Section):
    """The comparison of methods on points in the plane. The networks of all seeds are trained side by side."""

    seed: int = 0
    """The first seed. All random numbers are functions of the seed and of their position."""
    data: Data = Data()
    """The points, as `python -m pipeline.demos.moons.data` packs them."""
    num_seeds: Positive = 20
    """The number of seeds, from `seed` on. Each has its own weights, batches and jitter."""
    threads: Positive = 2
    """The number of CPU threads."""
    hidden: Positive = 8
    """The number of units in each of the two hidden layers."""
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    """The activation function between the layers."""
    init: Annotated[float, Field(gt=0)] = 0.1
    """Weights begin uniform in (-init, init); biases begin at 0."""
    steps: Positive = 2000
    """The number of steps of each method."""
    batch_size: Positive = 128
    """Unlabeled points per step. All labeled points are in every step."""
    jitter: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise of the strong view. The weak view is the point itself."""
    teacher_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of plain gradient descent, for every network that learns from labels or consistency."""
    student_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the students, which learn from pseudo-labels."""
    separated: Fraction = 0.99
    """The moons count as separated from this accuracy on test on."""
    uda: Uda = Uda(weight=1.0, ramp_steps=0, threshold=0.0, temperature=1.0)
    """The consistency loss of `uda` and of the teacher."""
    meta: Meta = Meta()
    """The settings of Meta Pseudo Labels. It is compared with no feedback and with the wrong sign in any case."""

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
