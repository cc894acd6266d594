"""What a child process is told to do: one frozen job a stage, read from the `job.json` in its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pipeline.config import Data, Evaluate, Label, Meta, Runtime, Section, Select, Split, Training, TwoMoons

Role = Literal["teacher", "student", "control", "finetune"]


class TrainJob(Section):
    """Train one model on labeled images and, with a selection, on pseudo-labeled ones."""

    kind: Literal["train"] = "train"
    out: Path
    """The stage folder."""
    role: Role
    round: int
    seed: int
    data: Data
    training: Training
    evaluate: Evaluate
    runtime: Runtime
    selection: Path | None = None
    """A finished select stage; its record names the label stage it was made from."""
    accept_environment: bool = False


class MetaJob(Section):
    """Train a teacher and its student together, or with `student` absent a UDA teacher alone."""

    kind: Literal["meta"] = "meta"
    out: Path
    """The stage folder: the student's, with the teacher's in `teacher/` below it; or the UDA teacher's."""
    round: int
    seed: int
    data: Data
    teacher: Training
    student: Training | None
    meta: Meta
    evaluate: Evaluate
    runtime: Runtime
    labels: Path | None = None
    """A finished label stage, with `meta.teacher: adjuster`."""
    accept_environment: bool = False


class MoonsJob(Section):
    """Compare the methods on the two moons."""

    kind: Literal["moons"] = "moons"
    out: Path
    round: int = 0
    seed: int
    data: Data
    two_moons: TwoMoons
    runtime: Runtime
    accept_environment: bool = False


class LabelJob(Section):
    """Predict every unlabeled image with one teacher, or with the mean of several."""

    kind: Literal["label"] = "label"
    out: Path
    round: int
    data: Data
    label: Label
    runtime: Runtime
    teachers: tuple[Path, ...]
    """Stage folders or exported files; the newest first."""
    accept_environment: bool = False


class SelectJob(Section):
    """Choose pseudo-labels and their multiplicities."""

    kind: Literal["select"] = "select"
    out: Path
    round: int
    seed: int
    data: Data
    select: Select
    labels: Path
    """A finished label stage."""
    accept_environment: bool = False


class EvaluateJob(Section):
    """Evaluate models on a split."""

    kind: Literal["evaluate"] = "evaluate"
    out: Path
    data: Data
    split: Split
    models: dict[str, Path]
    """Name -> stage folder."""
    evaluate: Evaluate
    runtime: Runtime
    accept_environment: bool = False


Job = TrainJob | MetaJob | MoonsJob | LabelJob | SelectJob | EvaluateJob
_ADAPTER: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


def read_job(path: Path) -> Job:
    """Read a job.json."""
    return _ADAPTER.validate_json(path.read_bytes())
