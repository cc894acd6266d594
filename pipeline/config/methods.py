"""What each method requires of the config.

A method of yours is registered here by `pipeline.methods.register_method` (docs/extend.md). Nothing else asks for a
method by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config.base import Section
from pipeline.config.learners import FixMatch, Meta, Uda
from pipeline.config.network import NetworkSettings
from pipeline.config.training import Training

if TYPE_CHECKING:
    from pipeline.config.config import Config


def _all_is_read(config: Config) -> Mapping[str, str]:
    return {}


def _all_is_well(config: Config) -> None:
    return None


@dataclass(frozen=True)
class MethodConfig:
    """What a method requires of the config."""

    reads: tuple[str, ...]
    """The sections that it reads, beside those that every method reads."""
    settings: Mapping[str, type[Section]] = field(default_factory=dict)
    """The sections among them that belong to its learner: name -> class."""
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Section -> key -> value of defaults that differ from the section's own."""
    unread: Callable[[Config], Mapping[str, str]] = _all_is_read
    """The keys inside these sections that it does not read -> what to set so that it does, or nothing. A warning names
    those that are changed, and no ablation switches them."""
    check: Callable[[Config], None] = _all_is_well
    """It raises ValueError if the method cannot train by the config; the message names key, value and fix."""
    passes: float = 1.0
    """About how many passes of the student an unlabeled image of a step costs; `selftrain init` estimates by it."""


_OF_PSEUDO_LABELS = ("targets", "target_temperature", "mixup", "cutmix", "distillation")
"""The keys of a training that only the learner of labels and pseudo-labels reads."""
_OF_TARGETS = ("teacher.targets", "teacher.target_temperature")
"""What a teacher reads as a student of its own labels only."""
_WITH_UNLABELED = {"unlabeled_ratio": 7.0, "noise_labeled": False, "loss_normalization": "labeled"}
"""The defaults of a student without pseudo-labels: labeled images have no noise, and the loss is a sum of means."""


# -------------------------------------------------------------------------------------------- what each one requires


def _of_noisy_student(config: Config) -> Mapping[str, str]:
    rounds = config.rounds
    keys: dict[str, str] = {} if rounds.on_features else dict.fromkeys(_OF_TARGETS, "")
    keys |= _unread_distillation(config)
    if not rounds.num_rounds:
        of_students = ("student", "rounds.start", "rounds.judges")
        keys |= dict.fromkeys(of_students, "set rounds.num_rounds to 1 or more")
    if not rounds.total:
        of_rounds = ("label", "select", "rounds.patience", "rounds.tolerance", "rounds.overrides")
        keys |= dict.fromkeys(of_rounds, "set rounds.num_rounds to 1 or more")
    elif rounds.total < 2:
        keys["label.ensemble"] = "set rounds.num_rounds to 2 or more"  # one round has one teacher
    if rounds.num_rounds < 2:
        keys |= dict.fromkeys(("rounds.grow", "rounds.grow_image_size"), "set rounds.num_rounds to 2 or more")
    return keys


def _unread_distillation(config: Config) -> dict[str, str]:
    """The usual value of an ablation is a round's teacher, which the round-0 teacher has not."""
    fix = "set teacher.distillation.model to a trained one"
    return {"teacher.distillation": fix} if config.teacher.distillation is None else {}


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
    if config.teacher.probe is not None:
        if config.teacher.probe.classifier == "knn":
            raise ValueError(
                "teacher.probe.classifier is knn, which makes no model, but the teacher of round 0 is one, to be "
                "evaluated, exported and started from; set it to logistic, and that of a member of committee to knn"
            )
        for name, how in (("evaluate", config.evaluate), ("label", config.label)):
            for key, off in (("crops", "center"), ("scales", (1.0,))):
                if (value := getattr(how, key)) != off:
                    raise ValueError(
                        f"{name}.{key} is {value}, but with teacher.probe images are seen as stored features, once; "
                        f"drop {name}.{key}"
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
    for key in ("init", "zero_gamma"):
        if config.rounds.start == "init" and getattr(config.student, key) is not None:
            raise ValueError(
                f"student.{key} is set, but with rounds.start: init students start from their teacher; drop it, or set "
                "rounds.start to scratch"
            )


def _of_uda(config: Config) -> Mapping[str, str]:
    return {f"student.{key}": "" for key in _OF_PSEUDO_LABELS}


def _of_fixmatch(config: Config) -> Mapping[str, str]:
    keys = {f"student.{key}": "" for key in _OF_PSEUDO_LABELS}
    if config.fixmatch.threshold != "adaptive":
        unread = ("fixmatch.threshold_decay", "fixmatch.clamp")
        keys |= dict.fromkeys(unread, "set fixmatch.threshold to adaptive")
    return keys


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


def _of_meta(config: Config) -> Mapping[str, str]:
    keys = {f"student.{key}": "" for key in _OF_PSEUDO_LABELS}
    if config.meta.feedback == "off":
        keys |= dict.fromkeys(("meta.scale", "meta.baseline_decay"), "set meta.feedback to exact")
    if config.meta.teacher == "adjuster":
        return {**keys, **dict.fromkeys(("uda", *_OF_TARGETS), ""), **_unread_distillation(config)}
    stream = [f"teacher.{key}" for key in Training.model_fields if key not in NetworkSettings.model_fields]
    return {**keys, **dict.fromkeys(("meta.adjuster", "label", *stream), "set meta.teacher to adjuster")}


def _check_meta(config: Config) -> None:
    _check_joint_training(config)
    waits = config.meta.student_wait + config.student.warmup_steps
    if waits >= config.student.steps:
        raise ValueError(
            f"meta.student_wait ({config.meta.student_wait}) and student.warmup_steps ({config.student.warmup_steps}) "
            f"leave nothing of student.steps ({config.student.steps}); lower them"
        )
    _check_schedules_of_meta(config)
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


def _check_schedules_of_meta(config: Config) -> None:
    """Check the schedules of both networks: the student's covers the steps after its wait, and both end together."""
    student, steps = config.student, config.student.steps
    whose = {"student.": (student, steps - config.meta.student_wait)}
    if config.meta.teacher == "network":
        whose["teacher."] = (config.teacher, steps)
        if config.teacher.schedule is not None and config.teacher.schedule.name == "plateau":
            raise ValueError(
                "teacher.schedule.name is plateau, but with method meta val judges the student; set it to step, or "
                "drop the section"
            )
    for section, (network, length) in whose.items():
        if network.schedule is not None:
            warmup = network.warmup_steps
            network.schedule.check(steps=length, warmup_steps=warmup, evaluations=student.evaluations, section=section)


def _check_supervised_teacher(config: Config) -> None:
    if config.teacher.unlabeled_ratio:
        raise ValueError("the round-0 teacher has no pseudo-labels to train on; set teacher.unlabeled_ratio to 0")
    if config.teacher.distillation is not None and config.teacher.distillation.model is None:
        raise ValueError(
            "teacher.distillation names no model, and the round-0 teacher has no teacher; set "
            "teacher.distillation.model to a trained one, or drop it"
        )


def _check_joint_training(config: Config) -> None:
    """Check a student that learns from labeled and unlabeled images in one training, without pseudo-labels."""
    student = config.student
    _check_start("student", student)
    if student.probe is not None:
        raise ValueError(f"student.probe is set, but method {config.method} trains its student; drop it")
    for key in ("overrides", "grow"):
        if getattr(config.rounds, key):
            raise ValueError(f"rounds.{key} is set, but method {config.method} has no rounds; drop it")
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
    if settings.start is not None and not settings.start.begins_anew:
        raise ValueError(f"{name}.start.mode is {settings.start.mode}, but here it can be init or insert only")


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
