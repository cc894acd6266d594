"""Meta Pseudo Labels, UDA, and the two moons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fraction, NonNegative, Positive, Probability, Section, off_is_a_word
from pipeline.config.training import Optimizer

SHARED = (
    "image_size",
    "mean",
    "std",
    "steps",
    "batch_size",
    "unlabeled_ratio",
    "loss_normalization",
    "accumulation",
    "weak",
    "strong",
    "noise_labeled",
    "keep",
    "evaluations",
)
"""What a teacher has of its student's section when both are trained together."""


class Adjuster(Section):
    """The small network of Reduced Meta Pseudo Labels, which adjusts a big teacher's stored predictions (Pham 2021,
    appendix E)."""

    hidden: Positive = 128
    """Units of its hidden layer."""
    optimizer: Optimizer = Optimizer(name="adamw", lr=1e-3, weight_decay=0.0)
    """Optimizer and learning rate."""


class Meta(Section):
    """Meta Pseudo Labels and UDA, with `method: meta` or `method: uda` (Pham 2021; Xie 2019).

    Teacher and student take their steps together: how many, on which images and views is the student's section; of the
    teacher's count its network, its noise and its optimization.
    """

    feedback: Literal["exact", "cosine", "finite-difference", "off"] = "exact"
    """How the student's progress on labeled images is measured: `exact` is the inner product of two gradients (eq. 12),
    `cosine` their cosine (appendix C.3), `finite-difference` the labeled loss before and after the student's step.
    With `off` the teacher learns nothing from its student, which still learns from it."""
    teacher: Literal["network", "adjuster"] = "network"
    """`network` trains the teacher along with the student. `adjuster` trains a small network on the stored predictions
    of a round-0 teacher, so that one big network is in memory (Reduced Meta Pseudo Labels)."""
    adjuster: Adjuster = Adjuster()
    """The small network, with `teacher: adjuster`."""
    scale: float = 1.0
    """Factor on the feedback's loss, which is a mean over the unlabeled images of a step; their number as factor would
    make it the gradient through the student's step. Controls: 0 measures feedback without using it, -1 is the wrong
    sign."""
    baseline_decay: Probability = 0.99
    """Of the moving average of the feedback that is subtracted from it."""
    labeled_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the teacher's supervised loss. With 0, feedback is the only way in which labels reach it."""
    label_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Labels are sampled from softmax(logits / temperature)."""
    joint_batch: bool = True
    """The teacher sees labeled images and both views of unlabeled ones in one forward pass, whose BatchNorm statistics
    they share, as in the paper's code. Without, weak views are passed by themselves, without gradients: faster."""
    uda_weight: Annotated[float, Field(ge=0)] = 8.0
    """Weight of the consistency loss between the teacher's predictions on weak and strong views."""
    uda_steps: NonNegative = 5000
    """Steps over which uda_weight rises from 0."""
    uda_temperature: Annotated[float, Field(gt=0)] = 0.7
    """The weak view's prediction is sharpened by this."""
    uda_threshold: Fraction = 0.6
    """Sharpened predictions below this confidence do not count."""
    student_wait: NonNegative = 0
    """Steps before the student takes its first."""

    _off = field_validator("feedback", mode="before")(off_is_a_word)

    def unread(self, *, with_student: bool) -> list[str]:
        """Keys that a training by these settings does not read."""
        if not with_student:
            return [*_OF_FEEDBACK, "feedback", "label_temperature", "student_wait", "adjuster"]
        unread = [*_OF_FEEDBACK] if self.feedback == "off" else []
        return [*unread, *(_OF_LOSSES if self.teacher == "adjuster" else ("adjuster",))]

    def without_unread(self, *, with_student: bool) -> Meta:
        """These settings with defaults in place of what is not read, so that a change of it repeats nothing."""
        defaults = Meta()
        return self.model_copy(update={key: getattr(defaults, key) for key in self.unread(with_student=with_student)})


_OF_FEEDBACK = ("scale", "baseline_decay")
_OF_LOSSES = ("labeled_weight", "joint_batch", "uda_weight", "uda_steps", "uda_temperature", "uda_threshold")
"""What only a teacher that is trained on images reads."""


class TwoMoons(Section):
    """Small networks on points in the plane, with `method: two_moons`; all seeds are trained side by side."""

    num_seeds: Positive = 20
    """Seeds, from the config's `seed` on: of weights, batches and jitter."""
    hidden: Positive = 8
    """Units in each of two hidden layers."""
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    """Between the layers."""
    init: Annotated[float, Field(gt=0)] = 0.1
    """Weights begin uniform in (-init, init)."""
    steps: Positive = 2000
    """Steps of each method."""
    batch_size: Positive = 128
    """Unlabeled points a step; the labeled ones are in every step, all of them."""
    jitter: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the strong view's noise; the weak view is the point."""
    teacher_lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of plain gradient descent, for every network that learns from labels or consistency."""
    student_lr: Annotated[float, Field(gt=0)] = 0.1
    """Of the students, which learn from pseudo-labels."""
    separated: Fraction = 0.99
    """Accuracy on test from which the moons count as separated."""
    meta: Meta = Meta(uda_weight=1.0, uda_steps=0, uda_threshold=0.0, uda_temperature=1.0)
    """The feedback and the consistency loss."""

    @model_validator(mode="after")
    def _meta_can_be_compared(self) -> TwoMoons:
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
