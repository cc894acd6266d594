"""What the models of a run see, where the config leaves it to the weights that they start from."""

from __future__ import annotations

from pipeline.config import Config, changed
from pipeline.config.methods import METHOD_CONFIGS
from pipeline.models.input import with_input_of, with_input_of_training


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
