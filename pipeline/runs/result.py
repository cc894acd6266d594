"""result.json: the outcome of a run, for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.evaluate.metrics import MetricsJson
from pipeline.methods.round import Round
from pipeline.runs.run import Run
from pipeline.stages.fingerprint import digest
from pipeline.stages.plugins import digests

SCHEMA = 2
FINAL, TEACHER, CONTROL, PROBE = "final", "teacher", "control", "probe"
"""The names of the models in test.json."""


class ResultRound(TypedDict):
    """A trained model in `rounds` of result.json; its folders are relative to the run folder."""

    round: int
    role: str
    val_top1: float
    judged: NotRequired[float | None]
    num_selected: int | None
    train_dir: str
    label_dir: str | None
    select_dir: str | None


class ResultFinal(TypedDict):
    """The part `final` of result.json."""

    round: int
    val_top1: float
    control_dir: str | None
    probe_dir: NotRequired[str | None]
    test: dict[str, MetricsJson]
    ensemble: NotRequired[dict[str, Any]]
    """The models of `evaluate.ensemble` and the figures of their mean on val; those on test are in `test`."""
    mc_dropout: NotRequired[dict[str, Any]]
    """The same of `evaluate.mc_dropout`."""


class Result(TypedDict):
    """What readers of result.json rely on; it holds more."""

    rounds: list[ResultRound]
    final: ResultFinal
    data: NotRequired[str]
    files: NotRequired[dict[str, str]]
    plugins: NotRequired[dict[str, str]]


def score_of(entry: Mapping[str, Any]) -> float:
    """The figure on val that an entry of a result's rounds is judged by, as `Round.score` is of a round."""
    judged = entry.get("judged")
    return float(entry["val_top1"] if judged is None else judged)


def models_of(rounds: Sequence[Round], final: Round, control: Path | None, probe: Path | None) -> dict[str, Path]:
    """Name -> folder of the models to measure on test: final model, and where there are such, the round-0 teacher, the
    control and the probe."""
    teacher = {TEACHER: rounds[0].train} if rounds[0].role == "teacher" else {}
    beside = {CONTROL: control, PROBE: probe}
    # The control of a probe that saw pseudo-labels is the probe that saw none: the teacher.
    others = {name: folder for name, folder in beside.items() if folder and folder not in teacher.values()}
    return {**teacher, FINAL: final.train, **others}


def result_of(
    run: Run,
    rounds: Sequence[Round],
    final: Round,
    *,
    control: Path | None = None,
    probe: Path | None = None,
    tests: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
    skipped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The content of result.json. Accuracies are fractions; what does not exist (yet) is null."""

    def top1(name: str) -> float | None:
        return tests[name]["top1"] if tests and name in tests else None

    return {
        "schema": SCHEMA,
        "method": run.config.method,
        "data": digest(run.data),
        "files": run.files,
        "plugins": digests(),
        "rounds": [r.to_json(run.folder) for r in rounds],
        "final": {
            "round": final.round,
            "val_top1": final.val_top1,
            "test_top1": top1(FINAL),
            "teacher_test_top1": top1(TEACHER),
            "control_test_top1": top1(CONTROL),
            "probe_test_top1": top1(PROBE),
            "model_dir": str(final.train.relative_to(run.folder)),
            "control_dir": str(control.relative_to(run.folder)) if control else None,
            "probe_dir": str(probe.relative_to(run.folder)) if probe else None,
            "test": dict(tests or {}),
            **(beside or {}),
        },
        "skipped": dict(skipped or {}),
    }
