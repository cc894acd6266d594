"""What a run reads beside its data, and what its models see, where the config leaves it to such weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config import Config, Training, changed
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.labels.merging import labels_fingerprint
from pipeline.models.format import model_digest
from pipeline.models.input import with_input_of, with_input_of_training
from pipeline.models.weights import files_read


def with_inputs(config: Config) -> Config:
    """The config with size and normalization of each start, in those keys that it does not set.

    Raises:
        UserError: a start does not exist.
    """
    asked = METHOD_CONFIGS[config.method]
    teacher, student = config.teacher, config.student
    if "teacher.mean" in asked.unread(config):  # which sees the student's images
        student = with_input_of(student.start or teacher.start, student, "student")
    else:
        teacher = with_input_of(teacher.start, teacher, "teacher")
        student = with_input_of(student.start, student, "student")
    if "rounds" in asked.reads and config.rounds.start == "init":
        student = with_input_of_training(teacher, student)
    committee = tuple(
        with_input_of(member.start, member, f"committee.{number}") for number, member in enumerate(config.committee)
    )
    return changed(config, teacher=teacher, student=student, committee=committee)


def files_of(config: Config) -> dict[str, str]:
    """Config key -> digest of what lies there, of all that the run reads beside its data: starts, models that are
    distilled, and others' labels.

    Raises:
        UserError: it is not there, or no such thing.
    """
    reads = METHOD_CONFIGS[config.method].reads
    trainings: dict[str, Training] = {name: getattr(config, name) for name in ("teacher", "student") if name in reads}
    if "committee" in reads:
        trainings |= {f"committee.{number}": member for number, member in enumerate(config.committee)}
    found = {f"{name}.{key}": model_digest(path) for name, one in trainings.items() for key, path in files_read(one)}
    if "rounds" in reads:
        named = models_of_overrides(config)
        found |= {f"rounds.overrides.{number}.{key}": model_digest(path) for number, key, path in named}
    others = enumerate(config.label.others) if "label" in reads else ()
    return found | {f"label.others.{number}": labels_fingerprint(one.labels) for number, one in others}


def models_of_overrides(config: Config) -> Iterator[tuple[int, str, Path]]:
    """Yield (number of the entry, key, path) of each model that `rounds.overrides` names."""
    for number, entry in enumerate(config.rounds.overrides):
        for key, path in files_read(config.for_round(number + 1).student):
            if f"student.{key}" in entry:
                yield number, f"student.{key}", path
