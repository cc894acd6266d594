"""What the report's template shows, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluate.metrics import Metrics, reliability
from pipeline.labels.selection import Report
from pipeline.report import plots
from pipeline.report.images import PseudoLabels, inspect_pseudo_labels
from pipeline.report.lineage import Diagram, draw, teachers_of, title_of
from pipeline.report.read import Round, Run, Stage, Trained
from pipeline.report.verdict import CONTROL, FINAL, TEACHER, judge
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stage import read_json


@dataclass(frozen=True)
class HeadlineRow:
    """A training in the headline table."""

    name: str
    model: str
    val: Metrics | None
    num_selected: int | None
    status: str


@dataclass(frozen=True)
class TimingRow:
    """What a stage took."""

    name: str
    seconds: float | None
    images: int | None

    @property
    def images_per_s(self) -> float | None:
        """Throughput, where the stage counts images."""
        return self.images / self.seconds if self.images and self.seconds else None


@dataclass(frozen=True)
class RoundSection:
    """The pseudo-labels of a round."""

    round: Round
    teachers: str
    report: Report
    histogram: bytes
    bars: bytes
    inspected: PseudoLabels | None
    problem: str
    """Why images and truth are not shown; empty if they are."""


def sections(run: Run) -> dict[str, Any]:
    """The template's variables."""
    verdict = judge(run)
    return {
        "verdict": verdict,
        "final": run.test.get(FINAL),
        "headline": [_headline(run, train) for train in run.trainings],
        "other_evaluations": {e.path.name: read_json(e.path / "test.json") for e in run.other_evaluations},
        "test_rows": [(text, run.test.get(name), verdict.gains.get(name)) for name, text in _test_names(run)],
        "accuracy_plot": _accuracy_plot(run),
        "curves_plot": _curves_plot(run),
        "meta_plots": _meta_plots(run),
        "calibration_plot": _calibration_plot(run),
        "round_sections": _round_sections(run),
        "lineage": _lineage(run),
        "timing": [_timing(run, stage) for stage in run.stages],
    }


def _test_names(run: Run) -> list[tuple[str, str]]:
    round_ = run.result["final"]["round"] if run.result else None
    final = "Final model" if round_ is None else f"Final model (round {round_})"
    return [(FINAL, final), (TEACHER, "Round 0 teacher"), (CONTROL, "Supervised control")]


def _headline(run: Run, train: Trained) -> HeadlineRow:
    said = run.result_of(train.round) if train.round is not None else {}
    status = "" if train.complete else "under way"
    if run.result is not None and run.result["final"]["round"] == train.round:
        status = "final"
    elif train.role == "student" and said and run.config.method == "noisy_student":
        status = "next teacher" if said["kept"] else "not kept: worse on val than its teacher"
    return HeadlineRow(title_of(train), train.architecture, train.val, _num_selected(run, train), status)


def _num_selected(run: Run, train: Trained) -> int | None:
    report = next((r.selection for r in run.rounds if r.train is train), None)
    return report["num_selected"] if report else None


# ----------------------------------------------------------------------------------------------------------- plots


def _accuracy_plot(run: Run) -> bytes | None:
    shown = [plots.Point(title_of(t), t.val, _standing(run, t)) for t in run.trainings if t.val is not None]
    return plots.accuracy_by_round(shown) if len(shown) > 1 else None


def _standing(run: Run, train: Trained) -> plots.Standing:
    if train.round is None:
        return "control"
    return "kept" if run.result_of(train.round).get("kept", True) else "not kept"


def _curves_plot(run: Run) -> bytes | None:
    losses = [_measured(t, t.loss) for t in run.trainings if t.losses]
    if run.config.teacher_sees_unlabeled:
        teachers = [_measured(t, "loss") for t in run.trainings if t.loss != "loss" and t.losses]
        losses = [*(("Round 0 teacher", steps, values) for _, steps, values in teachers), *losses]
    accuracies = [_curve(t, t.evaluations, "val_top1") for t in run.trainings if t.evaluations]
    return plots.learning_curves(losses, accuracies) if losses or accuracies else None


def _curve(train: Trained, lines: Sequence[Mapping[str, float]], key: str) -> plots.Curve:
    return title_of(train), np.array([line["step"] for line in lines], float), np.array([x[key] for x in lines], float)


def _meta_plots(run: Run) -> list[bytes]:
    """Of a teacher with a consistency loss, or of a student that was trained together with one."""
    train = next(
        (t for t in run.trainings if any({"student_loss", "mask_rate"} & line.keys() for line in t.losses)), None
    )
    if train is None:
        return []
    curves = {name: _measured(train, name) for name in ("feedback", "baseline", "cosine")}
    found = {name: curve for name, curve in curves.items() if len(curve[1])}
    used = [line for line in train.losses if line.get("uda_gradient")]
    if used:
        ratio = [line["feedback_gradient"] / line["uda_gradient"] for line in used]
        found["ratio"] = ("ratio", np.array([line["step"] for line in used], float), np.array(ratio, float))
    names = {"mask_rate": "sure enough for UDA", "student_agreement": "student agrees with the sampled label"}
    shares = [(text, *_measured(train, name)[1:]) for name, text in names.items()]
    of_both = {"val_top1": train.role, "teacher_val_top1": "teacher"}
    lines = train.evaluations
    accuracies = [_curve(train, [x for x in lines if key in x], key) for key in of_both]
    named = [(text, *curve[1:]) for text, curve in zip(of_both.values(), accuracies, strict=True) if len(curve[1])]
    both = plots.teacher_and_student([s for s in shares if len(s[1])], named)
    unit = "cosine of gradients" if run.config.meta.feedback == "cosine" else "fall of the labeled loss (nats)"
    return [plots.feedback_curves(found, unit), both] if "feedback" in found else [both]


def _measured(train: Trained, name: str) -> plots.Curve:
    """A training's metric where it was measured."""
    return _curve(train, [line for line in train.losses if line.get(name) is not None], name)


def _calibration_plot(run: Run) -> bytes | None:
    shown = [(title_of(t), t.predictions) for t in run.trainings if t.predictions]
    bins = [reliability(p.confidence, p.right) for _, p in shown if p is not None]
    return plots.calibration([name for name, _ in shown], bins) if shown else None


# --------------------------------------------------------------------------------------------------- pseudo-labels


def _round_sections(run: Run) -> list[RoundSection]:
    shown = [r for r in run.rounds if r.selection is not None]
    dataset, problem = None, ""
    if shown:
        try:
            dataset = open_split(run.config.data, "unlabeled")
        except UserError as error:
            problem = str(error)
    return [_round_section(run, r, r.selection, dataset, problem) for r in shown if r.selection is not None]


def _round_section(run: Run, round_: Round, report: Report, dataset: Dataset | None, problem: str) -> RoundSection:
    data, inspected = run.config.data, None
    if dataset is not None and round_.label is not None and round_.select is not None:
        try:
            size = run.config.for_round(round_.number).student.image_size
            inspected = inspect_pseudo_labels(dataset, round_.label.path, round_.select.path, data, size)
        except UserError as error:
            problem = str(error)
    threshold = round_.select.record["config"]["threshold"] if round_.select is not None else 0.0
    return RoundSection(
        round=round_,
        teachers=", ".join(title_of(t) for t in teachers_of(round_, run)) or "a model from outside the run",
        report=report,
        histogram=plots.confidence_histogram(report["histogram"], threshold),
        bars=plots.per_class(report),
        inspected=inspected,
        problem=problem,
    )


# ------------------------------------------------------------------------------------------------ lineage and timing


def _lineage(run: Run) -> Diagram:
    details: dict[str, str] = {}
    for round_ in run.rounds:
        if round_.select is not None and round_.selection is not None:
            kept, rows = round_.selection["num_selected"], round_.selection["num_rows"]
            details[round_.select.fingerprint] = f"{kept:,} of {rows:,} kept"
        if round_.label is not None:
            names = ", ".join(title_of(t) for t in teachers_of(round_, run))
            details[round_.label.fingerprint] = f"by {names.lower() or 'a model from outside the run'}"
    for train in run.trainings:
        shown = f" \u00b7 val {100 * train.val.top1:.1f}%" if train.val else " \u00b7 unfinished"
        details[train.fingerprint] = train.architecture + shown
    return draw(run, details)


def _timing(run: Run, stage: Stage) -> TimingRow:
    lines = stage.timing
    name = str(stage.path.relative_to(run.path))
    if not lines:
        return TimingRow(name, None, None)
    images = sum(int(line.get("images", 0)) for line in lines)
    return TimingRow(name, sum(line["seconds"] for line in lines), images or None)
