"""A run folder as values: all that its stages left, finished or not. The report shows nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.config import Config, load_config, parse
from pipeline.errors import UserError
from pipeline.evaluate.metrics import Metrics, MetricsJson
from pipeline.evaluate.per_class import per_class
from pipeline.evaluate.predictions import Predictions, read_predictions
from pipeline.files import parse_line, read_as, read_lines
from pipeline.models.format import ModelInfo
from pipeline.runs.ledger import FILE as LEDGER
from pipeline.runs.ledger import Entry, read_ledger
from pipeline.runs.result import Result
from pipeline.selection.summary import Summary
from pipeline.stages.folder import check_output, read_output, read_record

Json = dict[str, Any]
M = TypeVar("M", Metrics, Metrics | None)


@dataclass(frozen=True)
class StageRecord:
    """A stage folder and its stage.json."""

    path: Path
    record: Json

    @property
    def complete(self) -> bool:
        """Whether the stage is finished."""
        return bool(self.record["complete"])

    @property
    def fingerprint(self) -> str:
        """The digest of all that its output is a function of."""
        return str(self.record["fingerprint"])

    @property
    def names(self) -> frozenset[str]:
        """The names that later stages give it among their inputs: its fingerprint, and the digest of its model."""
        model = self.record.get("outputs", {}).get("model_sha256")
        return frozenset({self.fingerprint} if model is None else {self.fingerprint, str(model)})

    def reads(self, other: StageRecord) -> bool:
        """Whether the other stage's output is among its inputs."""
        return any(name in str(value) for value in self.record["inputs"].values() for name in other.names)

    def starts_from(self, other: StageRecord) -> bool:
        """Whether this training began with the other stage's weights."""
        return str(self.record["inputs"].get("start")) in other.names

    @cached_property
    def timing(self) -> tuple[Json, ...]:
        """The lines of timing.jsonl."""
        return read_lines(self.path / "timing.jsonl", torn=True)


@dataclass(frozen=True)
class TrainRecord(StageRecord):
    """A train stage and its metrics."""

    role: str
    round: int | None
    """The round; None for the control."""

    @cached_property
    def _lines(self) -> tuple[Json, ...]:
        return () if self.is_probe else read_lines(check_output(self.path / "metrics.jsonl"))

    @property
    def architecture(self) -> str:
        """The architecture of its model. model.json decides once it is there: `start.mode: use` takes another model."""
        if self.info is not None:
            return self.info.architecture
        config = self.record["config"]
        return str(config["model"] if self.is_probe else config["training"]["model"])

    @property
    def is_probe(self) -> bool:
        """Whether it is a classifier on the features of a frozen encoder."""
        return bool(self.record["kind"] == "probe")

    @cached_property
    def info(self) -> ModelInfo | None:
        """Its model.json; None until the stage is finished."""
        path = self.path / "model.json"
        return parse(ModelInfo, read_output(path), str(path)) if path.exists() else None

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes of its model. The stage must be finished."""
        return self.info.classes if self.info is not None else ()

    @property
    def loss(self) -> str:
        """The column of its own loss. If a student was trained with its teacher, `loss` is the teacher's."""
        return "student_loss" if any("student_loss" in line for line in self._lines) else "loss"

    @property
    def saw_unlabeled(self) -> bool:
        """Whether it was trained on unlabeled images."""
        return bool({"unlabeled", "selection"} & self.record["inputs"].keys())

    @property
    def losses(self) -> tuple[Json, ...]:
        """The lines of metrics.jsonl about steps."""
        return tuple(line for line in self._lines if "loss" in line)

    @property
    def evaluations(self) -> tuple[Json, ...]:
        """The lines of metrics.jsonl about evaluations."""
        return tuple(line for line in self._lines if "val_top1" in line)

    @property
    def stopped_early(self) -> str:
        """At which step it stopped early, in words; empty if it did not."""
        outputs = self.record.get("outputs", {})
        if not outputs.get("stopped_early"):
            return ""
        return f"stopped early, at step {outputs['steps']:,} of {self.record['config']['training']['steps']:,}"

    @cached_property
    def val(self) -> Metrics | None:
        """The figures on val; None until the stage is finished."""
        return completed(read_metrics(self.path / "evaluation-val.json"), self.predictions)

    @cached_property
    def predictions(self) -> Predictions | None:
        """The answers on val; None until the stage is finished."""
        return read_predictions(self.path / "predictions-val.npz")


@dataclass(frozen=True)
class RoundRecord:
    """The stages that one round left. Round 0 has no labels and no selection."""

    number: int
    train: TrainRecord | None
    label: StageRecord | None
    merge: StageRecord | None
    """What averaged these labels with those of `label.others`, if there are some."""
    select: StageRecord | None
    others: tuple[StageRecord, ...] = ()
    """The committee's probes, and students that judge along (`rounds.judges`)."""

    @cached_property
    def summary(self) -> Summary | None:
        """The summary of the selection; None until there is one."""
        path = self.select.path / "selection.json" if self.select else None
        return cast(Summary, read_output(path, Summary)) if path and path.exists() else None


@dataclass(frozen=True)
class RunRecord:
    """A run folder with all of its stages."""

    path: Path
    config: Config
    config_text: str
    result: Json | None
    """The content of result.json; None while the run is not finished."""
    rounds: tuple[RoundRecord, ...]
    control: TrainRecord | None
    probe: TrainRecord | None
    """The probe beside the models of a run, whose teacher is none."""
    evaluation: StageRecord | None
    test: Mapping[str, Metrics]
    """Name of a model (final, teacher, control) -> its figures on test."""
    test_predictions: Mapping[str, Predictions]
    other_evaluations: tuple[StageRecord, ...]
    """The evaluations on test of earlier configs of this run folder."""
    test_reads: tuple[Json, ...]
    """The reads of test by `selftrain evaluate`, outside of the run."""
    num_siblings: int
    """The number of stages with other settings, beside those that are shown."""
    features: tuple[StageRecord, ...] = ()
    """The passes of encoders."""

    @property
    def trainings(self) -> Iterator[TrainRecord]:
        """All models that are there, by round; the control and the probe come last."""
        stages = [*(r.train for r in self.rounds), self.control, self.probe]
        return (stage for stage in stages if stage is not None)

    @property
    def stages(self) -> Iterator[StageRecord]:
        """All stages that are there, by round; what reads features comes after them, control and evaluation last."""
        yield from self.features
        for round_ in self.rounds:
            labels = (round_.label, round_.merge, round_.select)
            yield from (s for s in (*labels, *round_.others, round_.train) if s is not None)
        yield from (s for s in (self.control, self.probe, self.evaluation) if s is not None)

    def result_of(self, round_: int) -> Json:
        """The entry of a round in result.json; empty while there is none."""
        rounds: list[Json] = (self.result or {}).get("rounds", [])
        return next((r for r in rounds if r["round"] == round_), {})


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: it is not a run folder, or a file in it is broken.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path} is not a run folder: it has no config.yaml; give the --run-dir of `selftrain run`, or type "
            "the command of the run again if it has lost it"
        )
    if not (path / LEDGER).is_file():
        raise UserError(
            f"{path} has no {LEDGER}: deleted, or an older version made this run; type the command of the run again"
        )
    result: Json | None = read_as(Result, path / "result.json") if (path / "result.json").exists() else None
    entries = read_ledger(path)
    models = {Path(entry["train_dir"]) for entry in result["rounds"]} if result else set()
    if not models <= {entry.folder for entry in entries}:
        result, models = None, set()  # the run has since begun to make its stages anew
    begun = [e for e in entries if e.folder in models or (path / e.folder / "stage.json").exists()]
    tests = result["final"]["test"] if result else {}
    control, probe = (next((e for e in reversed(begun) if e.role == role), None) for role in ("control", "probe"))
    evaluations = [_open(p.parent) for p in sorted(path.glob("evaluate-*/test.json"))]
    evaluation = next((e for e in evaluations if tests and read_tests(e.path) == tests), None)
    found = {name: read_predictions(evaluation.path / f"predictions-{name}.npz") for name in tests if evaluation}
    return RunRecord(
        path=path,
        config=load_config(path / "config.yaml"),
        config_text=(path / "config.yaml").read_text(),
        result=result,
        rounds=tuple(_rounds(path, begun)),
        control=_open_training(path, control) if control else None,
        probe=_open_training(path, probe) if probe else None,
        features=tuple(_open(path / e.folder) for e in begun if e.kind == "embed"),
        evaluation=evaluation,
        test={name: completed(Metrics.from_json(value), found.get(name)) for name, value in tests.items()},
        test_predictions={name: p for name, p in found.items() if p is not None},
        other_evaluations=tuple(e for e in evaluations if e is not evaluation),
        test_reads=tuple(_test_reads(path / "test_reads.jsonl")),
        num_siblings=len(
            {file.parent for file in path.glob("rounds/*/*/stage.json")} - {path / entry.folder for entry in begun}
        ),
    )


def _test_reads(path: Path) -> Iterator[Json]:
    """The reads of test that were logged. A line that a kill or a disk spoilt is a read too, and is never left out."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        if line:
            yield parse_line(line) or {"time": "unknown", "model": f"in a damaged line: {line[:80]!r}"}


def read_tests(stage: Path) -> dict[str, Json]:
    """The figures of an evaluate stage on test, by the names of its models."""
    found: dict[str, Json] = read_output(stage / "test.json", dict[str, MetricsJson])
    return found


def completed(metrics: M, predictions: Predictions | None) -> M:
    """The figures with those that files of earlier versions lack, which follow from the answers."""
    if metrics is None or metrics.balanced_accuracy is not None or predictions is None:
        return metrics
    found = per_class(predictions.label, predictions.pred)
    return replace(metrics, balanced_accuracy=found.balanced_accuracy, macro_f1=found.macro_f1)


def read_metrics(path: Path) -> Metrics | None:
    """The figures in a JSON file; None if there is no such file."""
    return Metrics.from_json(read_output(path, MetricsJson)) if path.exists() else None


def _rounds(path: Path, begun: Sequence[Entry]) -> Iterator[RoundRecord]:
    of_rounds = [entry for entry in begun if entry.round is not None and entry.role not in ("control", "probe")]
    for number in sorted({entry.round for entry in of_rounds if entry.round is not None}):
        entries = [entry for entry in of_rounds if entry.round == number]
        beside = [entry for entry in entries if entry.role in ("committee", "judge")]
        of = {entry.kind: entry for entry in entries if entry not in beside}
        label, merge, select = (
            _open(path / of[kind].folder) if kind in of else None for kind in ("label", "merge", "select")
        )
        trained, others = of.get("train") or of.get("probe"), tuple(_open(path / entry.folder) for entry in beside)
        yield RoundRecord(number, _open_training(path, trained) if trained else None, label, merge, select, others)


def _open_training(path: Path, entry: Entry) -> TrainRecord:
    stage = _open(path / entry.folder)
    number = None if entry.role in ("control", "probe") else entry.round
    return TrainRecord(stage.path, stage.record, str(entry.role), number)


def _open(folder: Path) -> StageRecord:
    return StageRecord(folder, read_record(folder))
