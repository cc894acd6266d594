"""A run folder as values: what every stage left behind, finished or not. The report shows nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.evaluate.metrics import Metrics
from pipeline.labels.selection import Report
from pipeline.stage import read_json, read_lines

Record = dict[str, Any]


@dataclass(frozen=True)
class Predictions:
    """One model's answers on one split, [N] each."""

    label: npt.NDArray[np.int32]
    pred: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Where the answer is the label, [N]."""
        return np.equal(self.label, self.pred)


@dataclass(frozen=True)
class Stage:
    """A stage folder."""

    path: Path
    record: Record

    @property
    def complete(self) -> bool:
        """Whether it finished."""
        return bool(self.record["complete"])

    @property
    def fingerprint(self) -> str:
        """What its output is a function of."""
        return str(self.record["fingerprint"])

    @property
    def names(self) -> frozenset[str]:
        """What later stages call it among their inputs: its fingerprint, or the digest of its model."""
        model = self.record.get("outputs", {}).get("model_sha256")
        return frozenset({self.fingerprint} if model is None else {self.fingerprint, str(model)})

    def reads(self, other: Stage) -> bool:
        """Whether the other stage's output is among its inputs."""
        return any(name in str(value) for value in self.record["inputs"].values() for name in other.names)

    def starts_from(self, other: Stage) -> bool:
        """Whether this training began with the other stage's weights."""
        return str(self.record["inputs"].get("start")) in other.names

    @cached_property
    def timing(self) -> tuple[Record, ...]:
        """Lines of timing.jsonl."""
        return read_lines(self.path / "timing.jsonl", torn=True)


@dataclass(frozen=True)
class Trained(Stage):
    """A train stage."""

    role: str
    round: int | None
    """None for the control."""

    @cached_property
    def _lines(self) -> tuple[Record, ...]:
        return read_lines(self.path / "metrics.jsonl")

    @property
    def architecture(self) -> str:
        """What it trains: its model.json's word once there is one, for `start.mode: use` takes another's model."""
        if (self.path / "model.json").exists():
            return str(read_json(self.path / "model.json")["architecture"])
        return str(self.record["config"]["training"]["model"])

    @property
    def loss(self) -> str:
        """The column of its own loss: beside a student trained with its teacher, `loss` is the teacher's."""
        trained_together = self.record["kind"] == "meta" and self.role == "student"
        return "student_loss" if trained_together else "loss"

    @property
    def losses(self) -> tuple[Record, ...]:
        """Training lines of metrics.jsonl."""
        return tuple(line for line in self._lines if "loss" in line)

    @property
    def evaluations(self) -> tuple[Record, ...]:
        """Evaluation lines of metrics.jsonl."""
        return tuple(line for line in self._lines if "val_top1" in line)

    @cached_property
    def val(self) -> Metrics | None:
        """Figures on val, once the stage is finished."""
        return read_metrics(self.path / "evaluation-val.json")

    @cached_property
    def predictions(self) -> Predictions | None:
        """Answers on val, once the stage is finished."""
        return read_predictions(self.path / "predictions-val.npz")


@dataclass(frozen=True)
class Round:
    """What one round left behind. Round 0 has no labels and no selection."""

    number: int
    train: Trained | None
    label: Stage | None
    select: Stage | None

    @cached_property
    def selection(self) -> Report | None:
        """The report of the selection, once there is one."""
        path = self.select.path / "selection.json" if self.select else None
        return cast(Report, read_json(path)) if path and path.exists() else None


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path
    config: Config
    config_text: str
    result: Record | None
    """result.json; None while the run is not finished."""
    rounds: tuple[Round, ...]
    control: Trained | None
    evaluation: Stage | None
    test: Mapping[str, Metrics]
    """Model name (final, teacher, control) -> figures on test."""
    test_predictions: Mapping[str, Predictions]
    other_evaluations: tuple[Stage, ...]
    """Evaluations of what earlier configs of this run folder ended with."""
    test_reads: tuple[Record, ...]
    """Evaluations on test that somebody asked for outside of the run."""
    num_siblings: int
    """Stages of other settings that lie beside the ones shown."""

    @property
    def trainings(self) -> Iterator[Trained]:
        """Every train stage, in order."""
        stages = [*(r.train for r in self.rounds), self.control]
        return (stage for stage in stages if stage is not None)

    @property
    def stages(self) -> Iterator[Stage]:
        """Every stage, in order."""
        for round_ in self.rounds:
            yield from (s for s in (round_.label, round_.select, round_.train) if s is not None)
        yield from (s for s in (self.control, self.evaluation) if s is not None)

    def result_of(self, round_: int) -> Record:
        """What result.json says about a round; empty while it says nothing."""
        rounds: list[Record] = (self.result or {}).get("rounds", [])
        return next((r for r in rounds if r["round"] == round_), {})


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, or a file in it is broken.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder: it has no config.yaml; give the --run-dir of `selftrain run`")
    result: Record | None = read_json(path / "result.json") if (path / "result.json").exists() else None
    config = load_config(path / "config.yaml")
    if config.method == "two_moons":
        raise UserError(f"{path} is a run of the two moons, whose report is its picture, moons-*/two_moons.png")
    rounds = tuple(_rounds_of_result(path, result) if result else _rounds_on_disk(path / "rounds", config))
    control_dir = result["final"]["control_dir"] if result else None
    tests = result["final"]["test"] if result else {}
    control = _open(path / control_dir) if control_dir else None
    if result and not control and not tests and config.evaluate.control:
        control = _control_under_way(path)
    evaluations = [_open(p.parent) for p in sorted(path.glob("evaluate-*/test.json"))]
    evaluation = next((e for e in evaluations if tests and read_json(e.path / "test.json") == tests), None)
    found = {name: read_predictions(evaluation.path / f"predictions-{name}.npz") for name in tests if evaluation}
    return Run(
        path=path,
        config=config,
        config_text=(path / "config.yaml").read_text(),
        result=result,
        rounds=rounds,
        control=_trained(control, "control", None),
        evaluation=evaluation,
        test={name: Metrics.from_json(value) for name, value in tests.items()},
        test_predictions={name: p for name, p in found.items() if p is not None},
        other_evaluations=tuple(e for e in evaluations if e is not evaluation),
        test_reads=read_lines(path / "test_reads.jsonl"),
        num_siblings=len(
            {file.parent for file in path.glob("rounds/*/*/stage.json")}
            - {stage.path for r in rounds for stage in (r.train, r.label, r.select) if stage is not None}
        ),
    )


def read_metrics(path: Path) -> Metrics | None:
    """The figures in a JSON file, None if there is no such file."""
    return Metrics.from_json(read_json(path)) if path.exists() else None


def read_predictions(path: Path) -> Predictions | None:
    """The answers in an npz file, None if there is no such file."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(arrays["label"], arrays["pred"], arrays["confidence"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _rounds_of_result(path: Path, result: Record) -> Iterator[Round]:
    for entry in result["rounds"]:
        label, select = (_open(path / entry[k]) if entry[k] else None for k in ("label_dir", "select_dir"))
        train = _open(path / entry["train_dir"])
        yield Round(entry["round"], Trained(train.path, train.record, entry["role"], entry["round"]), label, select)


def _rounds_on_disk(folder: Path, config: Config) -> Iterator[Round]:
    """The rounds of an unfinished run, as its method makes them. Other settings make sibling folders: of each kind the
    stage begun last is taken, if it reads one of those before it."""
    rounds = list(_rounds_of_students(folder, config) if config.method == "noisy_student" else _shared(folder, config))
    yield from rounds
    if config.finetune and rounds:
        number, trained = rounds[-1].number + 1, [r.train for r in rounds if r.train]
        finetune = _newest(folder / str(number), "train")
        if finetune and any(map(finetune.starts_from, trained)):
            yield Round(number, _trained(finetune, "finetune", number), None, None)


def _rounds_of_students(folder: Path, config: Config) -> Iterator[Round]:
    teacher = _trained(_newest(folder / "0", "train"), "teacher", 0)
    teachers = [teacher] if teacher else []
    if teacher:
        yield Round(0, teacher, None, None)
    for number in range(1, config.rounds.num_rounds + 1):
        here = folder / str(number)
        label = _newest(here, "label", teachers)
        select = _newest(here, "select", [label]) if label else None
        student = _trained(_newest(here, "train", [select]), "student", number) if select else None
        if label:
            yield Round(number, student, label, select)
        if student:
            teachers.append(student)


def _shared(folder: Path, config: Config) -> Iterator[Round]:
    """Of a teacher and a student that share a training, or of a teacher alone."""
    label = student = None
    if config.method == "uda":
        teacher = _newest(folder / "0", "meta")
    elif config.teacher_sees_unlabeled:
        student = _newest(folder / "1", "meta")
        path = student.path / "teacher" if student else None  # written at the end
        teacher = _open(path) if path and (path / "stage.json").exists() else None
    else:
        teacher = _newest(folder / "0", "train")
        label = _newest(folder / "1", "label", [teacher]) if teacher else None
        student = _newest(folder / "1", "meta", [label]) if label else None
    if teacher:
        yield Round(0, _trained(teacher, "teacher", 0), None, None)
    if label or student:
        yield Round(1, _trained(student, "student", 1), label, None)


def _trained(stage: Stage | None, role: str, number: int | None) -> Trained | None:
    return Trained(stage.path, stage.record, role, number) if stage else None


def _control_under_way(path: Path) -> Stage | None:
    control = _newest(path / "control", "train")
    return control if control and not control.complete else None


def _newest(folder: Path, kind: str, before: Sequence[Stage] | None = None) -> Stage | None:
    records = list(folder.glob(f"{kind}-*/stage.json"))
    newest = _open(max(records, key=lambda p: p.stat().st_mtime_ns).parent) if records else None
    return newest if newest and (before is None or any(map(newest.reads, before))) else None


def _open(folder: Path) -> Stage:
    return Stage(folder, read_json(folder / "stage.json"))
