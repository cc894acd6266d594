"""The sections of the methods' learners.

Nothing here says which method reads what: `methods.py` does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Fraction, NonNegative, Positive, Probability, Section, off_is_a_word, technique
from pipeline.config.mixing import MaskedMixup
from pipeline.config.network import Optimizer


class Uda(Section):
    """The consistency loss (Xie 2019) of `method: uda`, and of the teacher with `method: meta`."""

    weight: Annotated[float, Field(ge=0)] = technique(8.0, off=0.0)
    """Weight of the consistency loss between the predictions on the weak and the strong view of an unlabeled image."""
    ramp_steps: NonNegative = technique(5000, off=0)
    """Steps over which the weight rises linearly from 0 to `weight`. Lower it for short trainings."""
    temperature: Annotated[float, Field(gt=0)] = technique(0.7, off=1.0)
    """Temperature that sharpens the prediction on the weak view. Lower it if `mask_rate` stays near 0. 1 leaves it as
    it is."""
    threshold: Fraction = technique(0.6, off=0.0)
    """A sharpened prediction with a confidence below this does not count. Lower it if `mask_rate` stays near 0. 0
    counts all."""
    labeled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the supervised loss. At 0 with `method: meta`, labels reach the teacher by feedback only."""
    joint_batch: bool = True
    """Whether labeled images and both views of unlabeled ones share one forward pass, and with it their BatchNorm
    statistics, as in the code of Meta Pseudo Labels. If not, weak views have a forward pass of their own without
    gradients, which takes 15 to 19% less time per step."""


class Adjuster(Section):
    """The small network of Reduced Meta Pseudo Labels, which adjusts a big teacher's stored predictions (Pham 2021,
    appendix E)."""

    hidden: Positive = 128
    """Number of units in the hidden layer. Raise it for hundreds of classes."""
    optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3, weight_decay=0.0)
    """The optimizer of the adjuster and its learning rate."""


class Meta(Section):
    """The feedback of Meta Pseudo Labels (Pham 2021), with `method: meta`.

    Teacher and student take their steps together. The section `student` sets their number, the images and the views.
    The section `teacher` sets the teacher's network and optimization, and `uda` its consistency loss.
    """

    feedback: Literal["exact", "cosine", "finite-difference", "off"] = technique("exact", off="off")
    """The measure of the student's progress on labeled images. `exact` is the inner product of two gradients (eq. 12),
    `cosine` is their cosine (appendix C.3), and `finite-difference` is the labeled loss before the student's step minus
    that after it. With `off` the teacher learns nothing from its student, but the student still learns from it."""
    teacher: Literal["network", "adjuster"] = "network"
    """`network` trains the teacher along with the student. `adjuster` trains a small network on the stored predictions
    of a round-0 teacher, so that only one big network is in memory (Reduced Meta Pseudo Labels)."""
    adjuster: Adjuster = Adjuster()
    """The small network; only `teacher: adjuster` reads it."""
    scale: float = 1.0
    """Factor on the loss of the feedback. That loss is a mean over the unlabeled images of a step; with their number as
    factor, its gradient would be that through the student's step. Two values are controls: 0 measures the feedback
    without using it, and -1 has the wrong sign."""
    baseline_decay: Probability = 0.99
    """Decay of the moving average that is subtracted from the feedback. Lower it for trainings of a few hundred
    steps."""
    label_temperature: Annotated[float, Field(gt=0)] = technique(1.0, off=1.0)
    """Labels are sampled from softmax(logits / temperature). Values below 1 sample the surest class more often. Lower
    it for short trainings."""
    student_wait: NonNegative = technique(0, off=0)
    """Number of steps that the teacher takes before the student takes its first. Raise it so that the student does not
    learn a random teacher's labels."""

    _off = field_validator("feedback", mode="before")(off_is_a_word)


class FixMatch(Section):
    """The loss of FixMatch (Sohn 2020) on unlabeled images, with `method: fixmatch`."""

    weight: Annotated[float, Field(ge=0)] = technique(1.0, off=0.0)
    """Weight of the loss on unlabeled images. It rarely needs a change."""
    threshold: Fraction | Literal["adaptive"] = 0.95
    """The surest class on the weak view becomes the label of the strong view if its probability is at least this.
    `adaptive` learns one threshold per class from the model's own predictions (FreeMatch: Wang 2023, eq. 5 to 8), which
    uses more images early on."""
    threshold_decay: Probability = 0.999
    """Decay of the averages that adaptive thresholds are made of. Lower it for short trainings."""
    clamp: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Lowest and highest value of adaptive thresholds. Set [0.9, 0.95] for data such as SVHN, where low thresholds in
    the first steps teach wrong labels."""
    mixup: MaskedMixup | None = technique(None)
    """A second loss on unlabeled images, on mixtures of two images that both have a sure label. Without this section it
    is off."""

    @model_validator(mode="after")
    def _clamp_is_a_range(self) -> FixMatch:
        if self.clamp[0] > self.clamp[1]:
            raise ValueError(f"clamp is {list(self.clamp)}, whose first bound is above its second; swap them")
        return self


class MethodSections(Section):
    """The sections of the methods, which are part of a run's config."""

    uda: Uda = Uda()
    """The consistency loss; only `method: uda` and `method: meta` read it."""
    meta: Meta = Meta()
    """The feedback; only `method: meta` reads it."""
    fixmatch: FixMatch = FixMatch()
    """The loss on unlabeled images; only `method: fixmatch` reads it."""
