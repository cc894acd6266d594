"""The sections of the methods, and what each method requires of the config.

A method of yours is registered here by `pipeline.methods.register_method` (docs/extend.md). Nothing else asks for a
method by its name. It is long because what a method requires stands beside its section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import (
    Fraction,
    NonNegative,
    Positive,
    Probability,
    Section,
    off_is_a_word,
    technique,
)
from pipeline.config.mixing import MaskedMixup
from pipeline.config.network import NetworkSettings, Optimizer
from pipeline.config.training import Training

if TYPE_CHECKING:
    from pipeline.config.config import Config


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


# ------------------------------------------------------------------------------------------- what a method requires


def _nothing(config: Config) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class MethodConfig:
    """What a method requires of the config."""

    reads: tuple[str, ...]
    """The sections that it reads, beside those that every method reads."""
    settings: Mapping[str, type[Section]] = field(default_factory=dict)
    """The sections among them that belong to its learner: name -> class."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Section -> key -> value of defaults that differ from the section's own."""
    unread: Callable[[Config], Iterable[str]] = _nothing
    """The keys inside these sections that it does not read. A warning names those that are changed."""
    check: Callable[[Config], None] = _nothing  # type: ignore[assignment]
    """It raises ValueError if the method cannot train by the config; the message names key, value and fix."""
    passes: float = 1.0
    """About how many passes of the student an unlabeled image of a step costs; `selftrain init` estimates by it."""


_OF_PSEUDO_LABELS = ("targets", "target_temperature", "mixup", "cutmix")
"""The keys of a training that only the learner of labels and pseudo-labels reads."""
_WITH_UNLABELED = {"unlabeled_ratio": 7.0, "noise_labeled": False, "loss_normalization": "labeled"}
"""The defaults of a student without pseudo-labels: labeled images have no noise, and the loss is a sum of means."""


# -------------------------------------------------------------------------------------------- what each one requires


def _of_noisy_student(config: Config) -> Iterable[str]:
    return [] if config.rounds.on_features else ["teacher.targets", "teacher.target_temperature"]


def _check_noisy_student(config: Config) -> None:
    _check_supervised_teacher(config)
    if config.teacher.probe is None and (config.rounds.on_features or config.committee):
        key = "rounds.on_features" if config.rounds.on_features else "committee"
        raise ValueError(f"{key} is set, but the teacher is no probe; set teacher.probe to {{}}, or drop {key}")
    if config.teacher.probe is not None and config.teacher.probe.flip != config.evaluate.flip:
        raise ValueError(
            f"teacher.probe.flip is {config.teacher.probe.flip} and evaluate.flip {config.evaluate.flip}, so a probe "
            "would be judged on val otherwise than on test, and than its students; set both alike"
        )
    for number, member in enumerate(config.committee):
        if member.probe is None:
            raise ValueError(f"committee.{number} is no probe; set its probe to {{}}")
    if config.student.probe is not None:
        raise ValueError("student.probe is set, but students on features are those of rounds.on_features; drop it")
    if config.rounds.num_rounds and not config.student.unlabeled_batch_size:
        raise ValueError("student.unlabeled_ratio is 0, so students would see no pseudo-labels; set it, e.g. to 4")
    if config.rounds.start == "init" and config.student.start is not None:
        raise ValueError(
            f"student.start is {config.student.start.model}, but with rounds.start: init students start from their "
            "teacher; drop student.start, or set rounds.start to scratch"
        )


def _of_uda(config: Config) -> Iterable[str]:
    return [f"student.{key}" for key in _OF_PSEUDO_LABELS]


def _of_fixmatch(config: Config) -> Iterable[str]:
    keys = [f"student.{key}" for key in _OF_PSEUDO_LABELS]
    return keys if config.fixmatch.threshold == "adaptive" else [*keys, "fixmatch.threshold_decay", "fixmatch.clamp"]


def _check_fixmatch(config: Config) -> None:
    _check_joint_training(config)
    smoothing, threshold, clamp = config.student.label_smoothing, config.fixmatch.threshold, config.fixmatch.clamp
    key, least = ("clamp", clamp[0]) if threshold == "adaptive" else ("threshold", threshold)
    if least == 1:
        raise ValueError(f"fixmatch.{key} asks for a confidence of 1, which no image has; lower it, e.g. to 0.95")
    if least > 1 - smoothing:
        raise ValueError(
            f"student.label_smoothing {smoothing:g} keeps confidences below {1 - smoothing:g}, so fixmatch.{key} "
            f"{least:g} would leave no unlabeled image; drop label_smoothing, or lower it"
        )
    if config.fixmatch.mixup is not None and config.student.unlabeled_batch_size < 2:
        raise ValueError("fixmatch.mixup has one unlabeled image per step to mix; raise student.unlabeled_ratio")


def _of_meta(config: Config) -> Iterable[str]:
    keys = [f"student.{key}" for key in _OF_PSEUDO_LABELS]
    if config.meta.feedback == "off":
        keys += ["meta.scale", "meta.baseline_decay"]
    if config.meta.teacher == "adjuster":
        return [*keys, "uda", "teacher.targets", "teacher.target_temperature"]
    stream = [key for key in Training.model_fields if key not in NetworkSettings.model_fields]
    return [*keys, "meta.adjuster", "label", *(f"teacher.{key}" for key in stream)]


def _check_meta(config: Config) -> None:
    _check_joint_training(config)
    waits = config.meta.student_wait + config.student.warmup_steps
    if waits >= config.student.steps:
        raise ValueError(
            f"meta.student_wait ({config.meta.student_wait}) and student.warmup_steps ({config.student.warmup_steps}) "
            f"leave nothing of student.steps ({config.student.steps}); lower them"
        )
    if config.meta.teacher == "adjuster":
        _check_supervised_teacher(config)
    else:
        _check_start("teacher", config.teacher)
        if config.teacher.probe is not None:
            raise ValueError("teacher.probe is set, but with meta.teacher: network the teacher is trained; drop it")
        for key in ("warmup_steps", "thaw_steps"):
            if (value := getattr(config.teacher, key)) >= config.student.steps:
                raise ValueError(
                    f"teacher.{key} is {value}, not below student.steps ({config.student.steps}), which are the "
                    "teacher's too; lower it"
                )


def _check_supervised_teacher(config: Config) -> None:
    if config.teacher.unlabeled_ratio:
        raise ValueError("the round-0 teacher has no pseudo-labels to train on; set teacher.unlabeled_ratio to 0")


def _check_joint_training(config: Config) -> None:
    """Check a student that learns from labeled and unlabeled images in one training, without pseudo-labels."""
    student = config.student
    _check_start("student", student)
    if student.probe is not None:
        raise ValueError(f"student.probe is set, but method {config.method} trains its student; drop it")
    if config.rounds.overrides:
        raise ValueError(f"rounds.overrides is set, but method {config.method} has no rounds; drop it")
    if student.accumulation > 1:
        raise ValueError(
            f"student.accumulation is {student.accumulation}, but method {config.method} needs whole batches; set it "
            "to 1"
        )
    if not student.unlabeled_batch_size:
        raise ValueError("student.unlabeled_ratio leaves no unlabeled images in a step; raise it, e.g. to 7")
    if student.loss_normalization == "total":
        raise ValueError(
            f"student.loss_normalization is total, but method {config.method} weighs its losses by a key of its own; "
            "drop it"
        )


def _check_start(name: str, settings: NetworkSettings) -> None:
    if settings.start is not None and settings.start.mode != "init":
        raise ValueError(f"{name}.start.mode is {settings.start.mode}, but here it can be init only")


METHOD_CONFIGS: dict[str, MethodConfig] = {
    "noisy_student": MethodConfig(
        reads=("teacher", "committee", "label", "select", "student", "rounds"),
        unread=_of_noisy_student,
        check=_check_noisy_student,
    ),
    "uda": MethodConfig(
        reads=("student", "uda"),
        settings={"uda": Uda},
        defaults={"student": _WITH_UNLABELED},
        unread=_of_uda,
        check=_check_joint_training,
        passes=2.0,
    ),
    "fixmatch": MethodConfig(
        reads=("student", "fixmatch"),
        settings={"fixmatch": FixMatch},
        defaults={"student": {**_WITH_UNLABELED, "label_smoothing": 0.0}},
        unread=_of_fixmatch,
        check=_check_fixmatch,
        passes=2.0,
    ),
    "meta": MethodConfig(
        reads=("teacher", "label", "student", "uda", "meta"),
        settings={"uda": Uda, "meta": Meta},
        defaults={"student": _WITH_UNLABELED},
        unread=_of_meta,
        check=_check_meta,
        passes=4.0,
    ),
}
"""`method` of the config -> what it requires of the config."""


def sections() -> dict[str, type[Section]]:
    """The sections of all methods' learners: name -> class."""
    return {name: section for asked in METHOD_CONFIGS.values() for name, section in asked.settings.items()}
