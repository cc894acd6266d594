"""The config of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.config.base import (
    Fraction,
    JudgeBy,
    NonNegative,
    Positive,
    Scalar,
    Section,
    operational,
    parse,
    set_key,
    technique,
)
from pipeline.config.data import Data
from pipeline.config.evaluate import Evaluate
from pipeline.config.growth import grown
from pipeline.config.label import Label
from pipeline.config.learners import MethodSections
from pipeline.config.methods import METHOD_CONFIGS, sections
from pipeline.config.runtime import Runtime
from pipeline.config.selection import Select
from pipeline.config.training import Finetune, Training
from pipeline.errors import did_you_mean


class Rounds(Section):
    """The number of rounds, and when to stop earlier."""

    on_features: NonNegative = 0
    """Number of first rounds whose students are probes, too: self-training on stored features, which takes seconds. It
    needs `teacher.probe`. The rounds of `num_rounds` come after them."""
    num_rounds: NonNegative = 3
    """Number of students after the round-0 teacher. 0 trains the teacher only. Each costs a labeling and a training."""
    start: Literal["scratch", "init"] = "scratch"
    """The weights that each student starts from: `scratch` takes random ones, as in the paper; `init` takes its
    teacher's where shapes agree."""
    patience: Positive = 1
    """Stop after this many students that are worse on val than their teacher by more than chance (a paired test at
    95%), without a better one between them. A student that is below its teacher within chance is not counted."""
    tolerance: Fraction = 0.0
    """A student becomes the next teacher also if its figure on val (`judge_by`) is below its teacher's by up to this
    fraction. Raise it if val is small."""
    judge_by: JudgeBy = technique("top1", off="top1")
    """The figure on val that chooses models: which student becomes the next teacher, which model is the final one, and
    the best weights with `keep: best`. `top1` counts every image alike; `balanced_accuracy` and `macro_f1` count every
    class alike. Take one of these if classes are uneven and the small ones matter. All methods read it."""
    promotion_level: Annotated[float, Field(gt=0, lt=1)] = operational(0.05)
    """Level of the paired test on val by which a challenger is promoted if it is better than a champion. Lower it to
    ask for a clearer lead. All methods read it."""
    judges: Positive = 1
    """Number of students per round that are trained alike, each by a seed of its own. The mean of their figures on val
    decides, and together they label for the next round; the first one is the round's model. It costs that many
    trainings: set 2 or 3 if val has so few images that one student's luck would decide."""
    overrides: tuple[dict[str, Scalar], ...] = ()
    """Keys of label, select or student that differ between rounds, as `key.path: value`. The first entry holds for
    round 1, the second for round 2, and the last one for all later rounds."""
    grow: Annotated[float, Field(ge=0)] = technique(0.0, off=0.0)
    """Each student after the first one is larger than the one before by this compound coefficient, which is added to
    `student.model_args.phi`: with `model: efficientnet`, 1 makes it 1.2 times as deep and 1.1 times as wide. A key that
    `overrides` sets wins. 0 leaves all students alike."""
    grow_image_size: bool = technique(False, off=False)
    """Whether the images of a student grow with it, by 1.15 per coefficient of `grow`, so that its operations about
    double (Tan 2019, eq. 3)."""

    @property
    def total(self) -> int:
        """The number of all rounds: those on features, then the others."""
        return self.on_features + self.num_rounds

    @model_validator(mode="after")
    def _what_grows_is_clear(self) -> Rounds:
        if self.grow_image_size and not self.grow:
            raise ValueError("grow_image_size is true, but grow is 0; set grow to 1, or drop grow_image_size")
        if self.grow and self.start == "init":
            raise ValueError(
                f"grow is {self.grow:g}, but with start: init a student takes the weights of its teacher, which is "
                "smaller; set start to scratch, or grow to 0"
            )
        return self


def _offer_methods(schema: dict[str, Any]) -> None:
    """Offer all methods that are registered when a form is made of the schema."""
    schema["enum"] = list(METHOD_CONFIGS)


class Config(MethodSections):
    """The config of a whole run."""

    model_config = ConfigDict(extra="allow")  # only sections of registered methods, see _sections_of_methods

    seed: int = 0
    """Seed of the run. Every random number is a function of the seed and of its own position. Change it to repeat a run
    with other draws."""
    method: str = Field("noisy_student", json_schema_extra=_offer_methods)
    """The way in which teacher and student learn from each other; docs/methods/ has a card for each. `noisy_student`
    repeats label, select and train. `uda` and `fixmatch` train one network to agree between views of an image. `meta`
    trains a teacher and its student together."""
    data: Data = Data()
    """The folders and tars of images."""
    teacher: Training = Training()
    """The round-0 teacher, which is trained on labeled images only. With `method: meta` and `meta.teacher: network`,
    only its network and optimization are read, and it is trained on the student's stream."""
    label: Label = Label()
    """The teacher's pass over the unlabeled images, which predicts their pseudo-labels."""
    select: Select = Select()
    """The choice of pseudo-labels; only `method: noisy_student` reads it."""
    committee: tuple[Training, ...] = ()
    """Further teachers, each a probe on an encoder of its own. Their labels are averaged with the teacher's; only
    `method: noisy_student` reads it, with `teacher.probe`. Different encoders make different mistakes (V-PET 2025)."""
    student: Training = Training(unlabeled_ratio=4.0)
    """The student, which learns from labeled and unlabeled images, with noise."""
    rounds: Rounds = Rounds()
    """The number of rounds, when to stop, and by which figure models are chosen. Only `method: noisy_student` has
    rounds; the others read `judge_by` alone."""
    finetune: Finetune | None = None
    """An optional last training on labeled images, at a higher resolution. It trains the best model, or with `method:
    meta` the student, which has not learned from labels yet."""
    evaluate: Evaluate = Evaluate()
    """The evaluation of models, on val and on test."""
    runtime: Runtime = Runtime()
    """The machine that the run uses."""

    def for_round(self, number: int) -> Config:
        """The config of a round, with its growth and its overrides; round 1 is that of the first student."""
        overrides, rounds = self.rounds.overrides, self.rounds
        if not overrides and not rounds.grow:
            return self
        raw = self.model_dump(mode="json")
        raw["rounds"] |= {"overrides": [], "grow": 0.0, "grow_image_size": False}
        if rounds.grow:
            phi = rounds.grow * max(number - rounds.on_features - 1, 0)
            raw["student"] |= grown(raw["student"], phi, image_size=rounds.grow_image_size)
        for key, value in (overrides[min(number, len(overrides)) - 1] if overrides else {}).items():
            set_key(raw, key, value, "rounds.overrides")
        return parse(Config, raw, f"the config of round {number}")

    @classmethod
    def known_keys(cls) -> dict[str, type[Section] | None]:
        """The keys that a file may give, those of registered methods included."""
        return {**sections(), **super().known_keys()}

    @model_validator(mode="wrap")
    @classmethod
    def _sections_of_methods(cls, raw: Any, build: ModelWrapValidatorHandler[Config]) -> Config:
        """Unknown keys are errors, except for the sections of methods that were registered from outside.

        The config has the sections that are given and those that its method reads; others leave no trace in it.
        """
        if not isinstance(raw, Mapping):
            return build(raw)
        outside = {name: section for name, section in sections().items() if name not in cls.model_fields}
        given = {key: value for key, value in raw.items() if key in cls.model_fields}
        asked = METHOD_CONFIGS.get(str(raw.get("method", "noisy_student")))
        errors: list[InitErrorDetails] = []
        for name, section in outside.items():
            if name not in raw and (asked is None or name not in asked.settings):
                continue
            try:
                given[name] = section.model_validate(raw.get(name, {}))
            except ValidationError as error:
                errors += [_below(name, dict(details)) for details in error.errors()]
        for key in [key for key in raw if key not in cls.model_fields and key not in outside]:
            errors.append(InitErrorDetails(type="extra_forbidden", loc=(str(key),), input=raw[key]))
        try:
            config = build(given)
        except ValidationError as error:
            errors = [*(_below(None, dict(details)) for details in error.errors()), *errors]
        if errors:  # all errors, not only the first
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return config

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or raw.get("method", "noisy_student") not in METHOD_CONFIGS:
            return raw
        result = dict(raw)
        for name, defaults in METHOD_CONFIGS[raw.get("method", "noisy_student")].defaults.items():
            given = raw.get(name)
            if given is None or isinstance(given, Mapping):
                result[name] = {**defaults, **(given or {})}
            elif isinstance(given, BaseModel):
                result[name] = {**defaults, **given.model_dump(exclude_unset=True)}
        return result

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, method: str) -> str:
        if method not in METHOD_CONFIGS:
            known = did_you_mean(method, METHOD_CONFIGS)
            raise ValueError(f"there is no method {method!r}, {known}; a plugin's needs its --plugin")
        return method

    @field_validator("rounds")
    @classmethod
    def _overrides_are_of_rounds(cls, rounds: Rounds) -> Rounds:
        for key in {key for entry in rounds.overrides for key in entry}:
            if key.split(".")[0] not in ("label", "select", "student") or "." not in key:
                raise ValueError(f"rounds.overrides may change keys of label, select and student only, not `{key}`")
        return rounds

    @model_validator(mode="after")
    def _method_can_train_so(self) -> Config:
        METHOD_CONFIGS[self.method].check(self)
        phi = self.student.model_args.get("phi")
        if self.rounds.grow and (isinstance(phi, bool | str) or phi is None):
            raise ValueError(
                f"rounds.grow ({self.rounds.grow:g}) is added to student.model_args.phi, but that is {phi}; set it to "
                "the size of the first student, e.g. to 0 with student.model: efficientnet, or name the model of each "
                "round in rounds.overrides"
            )
        second = self.rounds.on_features + 2
        if self.rounds.grow and self.rounds.num_rounds > 1 and self.for_round(second).student.start is not None:
            raise ValueError(
                f"rounds.grow is {self.rounds.grow:g}, but student.start has the weights of one size, which no larger "
                "student could take; drop student.start, or set rounds.grow to 0"
            )
        for number in range(1, len(self.rounds.overrides) + 1):
            self.for_round(number)  # so a wrong key or value shows before the first round
        return self


def _below(name: str | None, details: dict[str, Any]) -> InitErrorDetails:
    """The error of a section, as an error of the section above, which has it under `name`."""
    location = details["loc"] if name is None else (name, *details["loc"])
    # Its own type and text again: not every type of pydantic's may be raised by its name, such as that of a path.
    return InitErrorDetails(
        type=PydanticCustomError(details["type"], details["msg"]), loc=location, input=details["input"]
    )
