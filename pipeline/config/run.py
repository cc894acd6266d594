"""A whole run, and the file that describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationInfo, field_validator, model_validator

from pipeline.config.data import Data
from pipeline.config.labels import Label, Select
from pipeline.config.meta import SHARED, Meta, TwoMoons
from pipeline.config.section import (
    Fraction,
    NonNegative,
    Positive,
    Precision,
    Scalar,
    Section,
    operational,
    parse,
    semantic,
    set_key,
)
from pipeline.config.training import Finetune, Training
from pipeline.errors import UserError


class Rounds(Section):
    """The loop."""

    num_rounds: NonNegative = 3
    """Students after the round-0 teacher."""
    start: Literal["scratch", "init"] = "scratch"
    """Each student starts from random weights (the paper), or from its teacher's weights where shapes agree."""
    patience: Positive = 1
    """Stop after this many rounds in a row whose student is worse on val than its teacher."""
    tolerance: Fraction = 0.0
    """A student counts as not worse if its val accuracy is at least its teacher's minus this."""
    overrides: tuple[dict[str, Scalar], ...] = ()
    """What differs from round to round, as `key.path: value` of label, select or student: the first entry holds for
    round 1, the second for round 2, and the last for every later round."""


class Evaluate(Section):
    """The evaluation on test, after every choice is fixed."""

    batch_size: Positive = 512
    """Images a forward pass."""
    flip: bool = False
    """Average the probabilities of the image and its mirror, in every figure of the run (val too)."""
    control: bool = True
    """Train a supervised control at the final student's budget and report it beside."""


class Runtime(Section):
    """The machine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU if there is one."""
    precision: Precision = "auto"
    """`auto` takes bf16 where the hardware has it, else fp32."""
    processes: Positive = 1
    """Training and labeling processes, one a GPU; on CPU they talk by gloo. Batch sizes must be multiples of it."""
    threads: NonNegative = 0
    """CPU threads a process; 0 means cores / processes, resolved once when the run is made."""
    compile: bool = False
    """torch.compile the model. Equal bits after a kill are promised with it off only."""
    log_every: Positive = operational(20)
    """Steps between metric lines. Every line costs one host sync."""
    checkpoint_every: Positive = operational(200)
    """Steps between checkpoints."""
    keep_checkpoints: Positive = operational(2)
    """Checkpoints kept beside the best on val."""


class Config(Section):
    """A whole run."""

    seed: int = 0
    """Every random number of the run is a function of this and of its position."""
    method: Literal["noisy_student", "meta", "uda", "two_moons"] = "noisy_student"
    """`noisy_student` repeats label, select and train; `meta` trains a teacher and its student together, the teacher by
    what its student learns; `uda` trains such a teacher alone; `two_moons` compares them on points in the plane."""
    data: Data = Data()
    """Images."""
    teacher: Training = Training()
    """Round 0, on labeled images only."""
    label: Label = Label()
    """The teacher's pass over the unlabeled images."""
    select: Select = Select()
    """The choice of pseudo-labels."""
    student: Training = Training(unlabeled_ratio=4.0)
    """Every later round, on labeled and pseudo-labeled images, with noise."""
    rounds: Rounds = Rounds()
    """The loop, with `method: noisy_student`."""
    meta: Meta = Meta()
    """With `method: meta` or `uda`."""
    two_moons: TwoMoons = TwoMoons()
    """With `method: two_moons`."""
    finetune: Finetune | None = None
    """An optional last training on labeled images: of the best model, at a higher resolution; with `method: meta`
    of the student, which has met none yet."""
    evaluate: Evaluate = Evaluate()
    """The evaluation on test."""
    runtime: Runtime = Runtime()
    """The machine."""

    @property
    def teacher_sees_unlabeled(self) -> bool:
        """Whether the teacher is trained on unlabeled images as well, beside its student or alone."""
        return self.method in ("meta", "uda") and self.meta.teacher == "network"

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

    @model_validator(mode="before")
    @classmethod
    def _meta_defaults(cls, raw: Any) -> Any:
        """Other defaults for Meta Pseudo Labels: labeled images without noise, and what teacher and student share."""
        if not isinstance(raw, Mapping) or raw.get("method") not in ("meta", "uda"):
            return raw
        sections = [raw.get(name) for name in ("student", "teacher", "meta")]
        if not all(section is None or isinstance(section, Mapping | BaseModel) for section in sections):
            return raw  # which is told as such
        student: dict[str, Any] = {"unlabeled_ratio": 7.0, "noise_labeled": False, "loss_normalization": "labeled"}
        student |= dict(raw.get("student") or {})
        teacher = dict(raw.get("teacher") or {})
        if dict(raw.get("meta") or {}).get("teacher") != "adjuster":
            teacher = {key: student[key] for key in SHARED if key in student} | teacher
        return {**raw, "student": student, "teacher": teacher}

    @model_validator(mode="after")
    def _teacher_and_student_share(self) -> Config:
        if self.method not in ("meta", "uda"):
            return self
        if self.rounds.overrides:
            raise ValueError(f"rounds.overrides is set, but method {self.method} has no rounds; drop it")
        alone = self.meta.teacher == "adjuster"  # its round-0 teacher is trained as any other
        for name, training in (("student", self.student), *(() if alone else (("teacher", self.teacher),))):
            if training.start is not None and training.start.mode != "init":
                raise ValueError(f"{name}.start.mode is {training.start.mode}, but here it can be init only")
        if self.student.accumulation > 1:
            raise ValueError(
                f"student.accumulation is {self.student.accumulation}, but feedback is taken of whole batches; "
                "set it to 1"
            )
        if not self.student.unlabeled_batch_size:
            raise ValueError("student.unlabeled_ratio leaves no unlabeled images in a step; raise it, e.g. to 7")
        if self.student.loss_normalization == "total":
            raise ValueError(
                f"student.loss_normalization is total, but method {self.method} weighs its losses by meta.uda_weight; "
                "drop it"
            )
        waits = self.meta.student_wait + self.student.warmup_steps
        if self.method == "meta" and waits >= self.student.steps:
            raise ValueError(
                f"meta.student_wait ({self.meta.student_wait}) and student.warmup_steps ({self.student.warmup_steps}) "
                f"leave nothing of student.steps ({self.student.steps}); lower them"
            )
        if self.meta.teacher == "adjuster" and self.method == "uda":
            raise ValueError("meta.teacher is adjuster, which learns from a student; set method to meta")
        if alone and self.teacher.unlabeled_ratio:
            raise ValueError("the round-0 teacher has no pseudo-labels to train on; set teacher.unlabeled_ratio to 0")
        for name in SHARED if not alone else ():
            ours, theirs = getattr(self.teacher, name), getattr(self.student, name)
            if ours != theirs:
                raise ValueError(f"teacher.{name} is {ours}, but teacher and student share the student's; drop it")
        return self

    @field_validator("rounds")
    @classmethod
    def _overrides_are_of_rounds(cls, rounds: Rounds) -> Rounds:
        for key in {key for entry in rounds.overrides for key in entry}:
            if key.split(".")[0] not in ("label", "select", "student") or "." not in key:
                raise ValueError(f"rounds.overrides may change keys of label, select and student only, not `{key}`")
        return rounds

    @field_validator("teacher")
    @classmethod
    def _teacher_has_no_unlabeled(cls, teacher: Training, info: ValidationInfo) -> Training:
        if teacher.unlabeled_ratio and info.data.get("method") == "noisy_student":
            raise ValueError("the round-0 teacher has no pseudo-labels to train on; set teacher.unlabeled_ratio to 0")
        return teacher

    @model_validator(mode="after")
    def _student_has_unlabeled(self) -> Config:
        if self.rounds.num_rounds and not self.student.unlabeled_batch_size:
            raise ValueError("student.unlabeled_ratio is 0, so students would see no pseudo-labels; set it, e.g. to 4")
        if self.rounds.start == "init" and self.student.start is not None:
            raise ValueError(
                f"student.start is {self.student.start.model}, but with rounds.start: init students start from their "
                "teacher; drop student.start, or set rounds.start to scratch"
            )
        for number in range(1, len(self.rounds.overrides) + 1):
            self.for_round(number)  # a wrong key or value shows before the first round
        return self


_UNREAD = {
    "noisy_student": ("meta", "two_moons"),
    "meta": ("select", "rounds", "two_moons"),
    "uda": ("label", "select", "student", "rounds", "two_moons"),
    "two_moons": (
        *("teacher", "label", "select", "student", "rounds", "meta", "finetune", "evaluate", "two_moons.meta.adjuster"),
        *("runtime.device", "runtime.precision", "runtime.compile"),
    ),
}
"""What a method does not read, beside `meta`'s keys. Of the student's section UDA reads what is SHARED."""


def unread_keys(config: Config) -> list[str]:
    """Keys that differ from their defaults and that the config's method does not read, such as `select.threshold`."""
    unread = list(_UNREAD[config.method])
    if config.method in ("meta", "uda"):
        unread += [f"meta.{key}" for key in config.meta.unread(with_student=config.method == "meta")]
    if config.method == "meta" and config.meta.teacher == "network":
        unread += ["label"]
    read = [f"student.{key}" for key in SHARED] if config.method == "uda" else []
    changed = _changed(semantic(config), semantic(Config(method=config.method)))
    return [key for key in changed if _is_below(key, unread) and not _is_below(key, read)]


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _changed(value: Any, default: Any, key: str = "") -> list[str]:
    if isinstance(value, dict) and isinstance(default, dict) and value.keys() == default.keys():
        return [c for name in value for c in _changed(value[name], default[name], f"{key}.{name}" if key else name)]
    return [] if value == default else [key]


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice, of which the first would be lost, is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:place]):
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply `key.path=value` overrides.

    Raises:
        UserError: the file is missing or is no YAML mapping, a key is unknown (with the nearest valid one), or a value
            is wrong; the message names the key, the value and the fix.
    """
    try:
        raw = yaml.load(path.read_text(), _Loader) or {}
    except FileNotFoundError as error:
        raise UserError(f"config {path} does not exist; `selftrain init DATA > {path.name}` writes one") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {path} must be a mapping of sections, not {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse(Config, raw, str(path))


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override!r} must look like key.path=value, e.g. --set student.steps=2000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
    set_key(raw, key, value, "--set")
