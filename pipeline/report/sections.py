"""The variables of the report's template, section by section."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.judging import TITLES
from pipeline.evaluate.metrics import Metrics, reliability
from pipeline.evaluate.stage import ENSEMBLE, SAMPLED
from pipeline.methods import METHODS
from pipeline.models.cost import Cost, cost_of
from pipeline.models.registry import is_known
from pipeline.report import plots
from pipeline.report.confusion import class_section
from pipeline.report.gallery import PseudoLabels, inspect_pseudo_labels
from pipeline.report.lineage import Diagram, draw, labeled_by, title_of
from pipeline.report.panels import panels_of
from pipeline.report.record import RoundRecord, RunRecord, StageRecord, TrainRecord, read_tests
from pipeline.report.verdict import judge
from pipeline.runs.control import why_no_probe
from pipeline.runs.result import CONTROL, FINAL, PROBE, TEACHER
from pipeline.selection.summary import Summary
from pipeline.shards.dataset import Dataset, open_split


@dataclass(frozen=True)
class HeadlineRow:
    """One training in the headline table."""

    name: str
    model: str
    val: Metrics | None
    num_selected: int | None
    status: str


@dataclass(frozen=True)
class TimingRow:
    """The time that one stage took."""

    name: str
    seconds: float | None
    images: int | None
    on_features: bool
    """Whether it read stored features, so that its time is without the encoder's, which has a row of its own."""

    @property
    def images_per_s(self) -> float | None:
        """The images per second; None if the stage does not count images."""
        return self.images / self.seconds if self.images and self.seconds else None


@dataclass(frozen=True)
class RoundSection:
    """The pseudo-labels of one round."""

    round: RoundRecord
    teachers: str
    summary: Summary
    cuts: tuple[float, ...]
    """The thresholds of the classes, [C], where these differ."""
    histogram: bytes
    bars: bytes
    inspected: PseudoLabels | None
    problem: str
    """The reason why images and truth are not shown; empty if they are."""

    @property
    def is_aligned(self) -> bool:
        """Whether the labels were aligned."""
        return any("weight" in c for c in self.summary["classes"])

    @property
    def on_val(self) -> list[tuple[str, float, float]]:
        """Which labels were held against those of val, in words, with their accuracy and their calibration error."""
        found: list[tuple[str, Mapping[str, Any] | None]] = [("the stored labels", self.summary.get("on_val"))]
        found += [("those after alignment", self.summary.get("aligned_on_val"))]
        found += [(f"those of {scores['table']}", scores) for scores in self.summary.get("scores_on_val", ())]
        return [(text, quality["top1"], quality["ece"]) for text, quality in found if quality is not None]


def sections(run: RunRecord) -> dict[str, Any]:
    """All variables of the template, by name."""
    verdict = judge(run)
    return {
        "verdict": verdict,
        "judged_by": TITLES[run.config.rounds.judge_by],
        "final": run.test.get(FINAL),
        "headline": [_headline(run, train) for train in run.trainings],
        "other_evaluations": {e.path.name: read_tests(e.path) for e in run.other_evaluations},
        "test_rows": [
            (text, run.test.get(name), verdict.gains.get(name), _cost(train))
            for name, text, train in models_on_test(run)
        ],
        "no_probe": _no_probe(run),
        "accuracy_plot": accuracy_plot(run),
        "curves_plot": _curves_plot(run),
        "panels": panels_of(run),
        "title": METHODS[run.config.method].title,
        "calibration_plot": _calibration_plot(run),
        "classes": class_section(run),
        "round_sections": _round_sections(run),
        "lineage": _lineage(run),
        "timing": [_timing(run, stage) for stage in run.stages],
    }


def models_on_test(run: RunRecord) -> list[tuple[str, str, TrainRecord | None]]:
    """The models of the table of test: the name in test.json, the name for people, the training."""
    round_ = run.result["final"]["round"] if run.result else None
    final = "Final model" if round_ is None else f"Final model (round {round_})"
    model = next((train for train in run.trainings if round_ is not None and train.round == round_), None)
    rows: list[tuple[str, str, TrainRecord | None]] = [(FINAL, final, model)]
    teacher = next((train for train in run.trainings if train.role == "teacher"), None)
    if teacher is not None:
        rows.append((TEACHER, title_of(teacher), teacher))
    if run.control is not None or teacher is None or not teacher.is_probe:
        rows.append((CONTROL, "Supervised control", run.control))
    if run.probe is not None:
        rows.append((PROBE, "Probe of the labels alone", run.probe))
    said = run.result["final"] if run.result else {}
    if found := said.get(ENSEMBLE):
        folders = {train.path: train for train in run.trainings}
        own = [(name, run.path / folder) for name, folder in found["models"].items() if name != FINAL]
        rows += [
            (name, f"Member {name.removeprefix('member-')} of the ensemble", folders.get(path)) for name, path in own
        ]
        rows.append((ENSEMBLE, f"Ensemble of {len(found['models'])}, val {100 * found['val']['top1']:.2f}%", None))
    if found := said.get(SAMPLED):
        title = f"Final model, mean of {found['samples']} samples with dropout, val {100 * found['val']['top1']:.2f}%"
        rows.append((SAMPLED, title, model))
    return rows


def _no_probe(run: RunRecord) -> str:
    """Why the table of test has no row of a probe, in words; empty if it has one, or no row at all."""
    if run.result is None or not run.test or run.probe is not None:
        return ""
    return why_no_probe(run.config, METHODS[run.config.method], run.result["final"]["round"])


def _cost(train: TrainRecord | None) -> Cost | None:
    """The parameters and operations of a model; None where there is no image model, or its code is not here."""
    if train is None or train.info is None or not is_known(train.info.architecture):
        return None
    return cost_of(train.info)


def _headline(run: RunRecord, train: TrainRecord) -> HeadlineRow:
    said = run.result_of(train.round) if train.round is not None else {}
    status = "" if train.complete else "under way"
    if run.result is not None and run.result["final"]["round"] == train.round:
        status = "final"
    elif said and any(r.train is train and r.select is not None for r in run.rounds):
        status = "next teacher" if said["kept"] else "not kept: worse on val than its teacher"
    status = "; ".join(filter(None, (status, train.stopped_early)))
    return HeadlineRow(title_of(train), train.architecture, train.val, _num_selected(run, train), status)


def _num_selected(run: RunRecord, train: TrainRecord) -> int | None:
    summary = next((r.summary for r in run.rounds if r.train is train), None)
    return summary["num_selected"] if summary else None


# ----------------------------------------------------------------------------------------------------------- plots


def accuracy_plot(run: RunRecord) -> bytes | None:
    """The accuracies on val of all models that are finished; None if that is one."""
    shown = [plots.Point(_in_two_lines(t), t.val, _standing(run, t)) for t in run.trainings if t.val is not None]
    return plots.accuracy_by_round(shown) if len(shown) > 1 else None


def _in_two_lines(train: TrainRecord) -> str:
    """The name of a training below its point, where names stand side by side."""
    return re.sub(r"^(Round \d+) ", r"\1\n", title_of(train))


def _standing(run: RunRecord, train: TrainRecord) -> plots.Standing:
    if train.round is None:
        return "control"
    return "kept" if run.result_of(train.round).get("kept", True) else "not kept"


def _curves_plot(run: RunRecord) -> bytes | None:
    losses = [_measured(t, t.loss) for t in run.trainings if t.losses]
    together = [t for t in run.trainings if t.loss != "loss" and any("labeled_loss" in line for line in t.losses)]
    teachers = [("Round 0 teacher", *_measured(t, "loss")[1:]) for t in together]
    accuracies = [plots.curve(title_of(t), t.evaluations, "val_top1") for t in run.trainings if t.evaluations]
    return plots.learning_curves([*teachers, *losses], accuracies, _titles(run)) if losses or accuracies else None


def _titles(run: RunRecord) -> list[str]:
    """The names of all trainings, in the order of their colors in every plot."""
    return [title_of(train) for train in run.trainings]


def _measured(train: TrainRecord, name: str) -> plots.Curve:
    """One metric of a training, over the steps at which it was measured."""
    return plots.curve(title_of(train), train.losses, name)


def _calibration_plot(run: RunRecord) -> bytes | None:
    shown = {title_of(t): t.predictions for t in run.trainings if t.predictions}
    bins = {name: reliability(found.confidence, found.right) for name, found in shown.items()}
    return plots.calibration(bins, _titles(run)) if bins else None


# --------------------------------------------------------------------------------------------------- pseudo-labels


def _round_sections(run: RunRecord) -> list[RoundSection]:
    shown = [r for r in run.rounds if r.summary is not None]
    dataset, problem = None, ""
    if shown:
        try:
            dataset = open_split(run.config.data, "unlabeled")
        except UserError as error:
            problem = str(error)
    return [_round_section(run, r, r.summary, dataset, problem) for r in shown if r.summary is not None]


def _round_section(
    run: RunRecord, round_: RoundRecord, summary: Summary, dataset: Dataset | None, problem: str
) -> RoundSection:
    data, inspected = run.config.data, None
    if dataset is not None and round_.select is not None:
        try:
            size = run.config.for_round(round_.number).student.image_size
            inspected = inspect_pseudo_labels(dataset, round_.select.path, data, size)
        except UserError as error:
            problem = str(error)
    return RoundSection(
        round=round_,
        teachers=labeled_by(round_, run),
        summary=summary,
        cuts=_cuts(summary),
        histogram=confidence_plot(round_, summary),
        bars=plots.per_class(summary),
        inspected=inspected,
        problem=problem,
    )


def confidence_plot(round_: RoundRecord, summary: Summary) -> bytes:
    """The histogram of a round's confidences, with its threshold, or those of its classes."""
    threshold = round_.select.record["config"].get("threshold", 0.0) if round_.select is not None else 0.0
    return plots.confidence_histogram(summary["histogram"], *(_cuts(summary) or [threshold]))


def _cuts(summary: Summary) -> tuple[float, ...]:
    return tuple(c["cut"] for c in summary["classes"] if "cut" in c)


# ------------------------------------------------------------------------------------------------ lineage and timing


def _lineage(run: RunRecord) -> Diagram:
    details: dict[str, str] = {}
    for round_ in run.rounds:
        if round_.select is not None and round_.summary is not None:
            kept, rows = round_.summary["num_selected"], round_.summary["num_rows"]
            details[round_.select.fingerprint] = f"{kept:,} of {rows:,} kept"
        if round_.label is not None:
            details[round_.label.fingerprint] = f"by {labeled_by(round_, run).lower()}"
    for train in run.trainings:
        shown = f" \u00b7 val {100 * train.val.top1:.1f}%" if train.val else " \u00b7 unfinished"
        details[train.fingerprint] = train.architecture + shown
    return draw(run, details)


def _timing(run: RunRecord, stage: StageRecord) -> TimingRow:
    lines = stage.timing
    name = str(stage.path.relative_to(run.path))
    on_features = any(key.startswith("features") for key in stage.record["inputs"])
    if not lines:
        return TimingRow(name, None, None, on_features)
    images = sum(int(line.get("images", 0)) for line in lines)
    return TimingRow(name, sum(line["seconds"] for line in lines), images or None, on_features)
