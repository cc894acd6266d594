"""A whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from pipeline.config.base import Fraction, NonNegative, Positive, Scalar, Section, parse, set_key
from pipeline.config.data import Data
from pipeline.config.evaluate import Evaluate
from pipeline.config.label import Label
from pipeline.config.methods import METHOD_CONFIGS, MethodSections, sections
from pipeline.config.runtime import Runtime
from pipeline.config.selection import Select
from pipeline.config.training import Finetune, Training
from pipeline.errors import did_you_mean


class Rounds(Section):
    """How many rounds there are, and when to stop."""

    num_rounds: NonNegative = 3
    """Number of students after the round-0 teacher."""
    start: Literal["scratch", "init"] = "scratch"
    """Whether each student starts from random weights (the paper), or from its teacher's weights where shapes agree."""
    patience: Positive = 1
    """Stop after this many rounds in a row whose student is worse on val than its teacher."""
    tolerance: Fraction = 0.0
    """A student counts as not worse if its val accuracy is at least its teacher's minus this."""
    overrides: tuple[dict[str, Scalar], ...] = ()
    """What differs from round to round, as `key.path: value` of label, select or student. The first entry holds for
    round 1, the second for round 2, and the last for every later round."""


class Config(MethodSections):
    """A whole run."""

    model_config = ConfigDict(extra="allow")  # sections of registered methods only, see _sections_of_methods

    seed: int = 0
    """Every random number of the run is a function of this and of its position."""
    method: str = Field("noisy_student", json_schema_extra={"enum": list(METHOD_CONFIGS)})
    """How teacher and student learn from each other; docs/methods/ has a card for each. `noisy_student` repeats label,
    select and train. Others train one network to be consistent between views, or a teacher and its student together."""
    data: Data = Data()
    """The images."""
    teacher: Training = Training()
    """The round-0 teacher, which sees labeled images only. `method: meta` reads its network and optimization, and
    trains it on the student's stream."""
    label: Label = Label()
    """The teacher's pass over the unlabeled images."""
    select: Select = Select()
    """The choice of pseudo-labels, with `method: noisy_student`."""
    student: Training = Training(unlabeled_ratio=4.0)
    """The network that learns from labeled and unlabeled images, with noise."""
    rounds: Rounds = Rounds()
    """The rounds, with `method: noisy_student`."""
    finetune: Finetune | None = None
    """An optional last training on labeled images: of the best model, at a higher resolution; with `method: meta` of
    the student, which has met none yet."""
    evaluate: Evaluate = Evaluate()
    """How models are evaluated."""
    runtime: Runtime = Runtime()
    """The machine."""

    def for_round(self, number: int) -> Config:
        """The config with the overrides of a round (1 is the first student's)."""
        overrides = self.rounds.overrides
        if not overrides:
            return self
        raw = self.model_dump(mode="json")
        raw["rounds"]["overrides"] = []
        for key, value in overrides[min(number, len(overrides)) - 1].items():
            set_key(raw, key, value, "rounds.overrides")
        return parse(Config, raw, f"rounds.overrides of round {number}")

    @classmethod
    def known_keys(cls) -> dict[str, type[Section] | None]:
        """Those of registered methods too."""
        return {**sections(), **super().known_keys()}

    @model_validator(mode="wrap")
    @classmethod
    def _sections_of_methods(cls, raw: Any, build: ModelWrapValidatorHandler[Config]) -> Config:
        """Unknown keys are errors, except for the sections of methods that were registered from outside."""
        if not isinstance(raw, Mapping):
            return build(raw)
        outside = {name: section for name, section in sections().items() if name not in cls.model_fields}
        given = {key: value for key, value in raw.items() if key in cls.model_fields}
        errors: list[InitErrorDetails] = []
        for name, section in outside.items():
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
        if errors:  # all of them, not the first only
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
        for number in range(1, len(self.rounds.overrides) + 1):
            self.for_round(number)  # a wrong key or value shows before the first round
        return self


def _below(name: str | None, details: dict[str, Any]) -> InitErrorDetails:
    """An error of a section as one of what has it under a name."""
    location = details["loc"] if name is None else (name, *details["loc"])
    return InitErrorDetails(type=details["type"], loc=location, input=details["input"], ctx=details.get("ctx", {}))
