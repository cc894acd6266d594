"""The select stage: it makes a selection and its summary from a teacher's labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_type_hints

import numpy as np

from pipeline.arrays import F64Array
from pipeline.config import Select, semantic
from pipeline.errors import UserError
from pipeline.labels.on_val import read_on_val
from pipeline.labels.store import LabelStore
from pipeline.selection.alignment import Aligned, Labels, aligned, alignment
from pipeline.selection.rules import prior_of, select
from pipeline.selection.selection import SELECTION_FILES, write_selection
from pipeline.selection.summary import LabelQuality, Notice, QualityOnVal, Summary, summary_table
from pipeline.shards.dataset import Dataset, open_split
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import stage_record
from pipeline.stages.jobs import SelectJob
from pipeline.stages.preamble import Stage

log = logging.getLogger("selftrain.select")

GROSS_DEVIATION = 0.3
"""A warning is logged above this total variation between the predicted and the labeled prior."""
FEW = 0.01
"""A threshold or share that leaves less than this share of the pool is warned of."""
TENTH = 0.1


def select_inputs(job: SelectJob) -> StageInputs:
    """The settings and inputs that the selection is a function of. The label stage must be finished."""
    config = {**semantic(job.select), "seed": job.seed, "round": job.round}
    inputs = {
        "labels": str(stage_record(job.labels)["fingerprint"]),
        "labeled": open_split(job.data, "labeled").fingerprint,
        "unlabeled": open_split(job.data, "unlabeled").fingerprint,
    }
    return StageInputs(config, inputs)


def run_select(job: SelectJob, stage: Stage) -> None:
    """Write a selection and print its summary per class.

    Raises:
        UserError: the labels are stale or damaged, nothing is selected, or a class is lost that may not be lost.
    """
    from pipeline.stages.terminal import as_text, output

    unlabeled = open_split(job.data, "unlabeled")
    labels: Labels = LabelStore(job.labels, unlabeled)
    labeled_prior, weights = _prior_of(open_split(job.data, "labeled")), None
    if job.select.align:
        weights = alignment(labels, prior_of(job.select, labeled_prior))
        labels = Aligned(labels, weights)
    selection = select(
        labels.label,
        labels.confidence,
        labels.log_odds,
        unlabeled.ids,
        config=job.select,
        classes=unlabeled.classes,
        labeled_prior=labeled_prior,
        seed=job.seed,
    )
    summary = selection.summary
    if weights is not None:
        for line, weight in zip(summary["classes"], weights.tolist(), strict=True):
            line["weight"] = weight
    outputs = stage_record(job.labels)["outputs"]
    if scores := outputs.get("scores"):
        summary["scores_on_val"] = scores
    if quality := outputs.get("val"):
        summary["on_val"] = cast(LabelQuality, _picked(LabelQuality, quality))
    if weights is not None and (on_val := read_on_val(job.labels)) is not None:
        of_aligned = replace(on_val, probabilities=aligned(on_val.probabilities, weights)).metrics()
        summary["aligned_on_val"] = cast(QualityOnVal, _picked(QualityOnVal, of_aligned.to_json()))
    table = summary_table(summary)
    output().print(table)
    log.info("%s", as_text(table))
    check_summary(summary, job.select)
    if notices := [*find_notices(summary, job.select), *notices_of_calibration(summary, job.select)]:
        summary["warnings"] = notices
        for notice in notices:
            log.warning("%s: %s", notice["name"], notice["text"])
    write_selection(job.out, selection)
    stage.finish(
        SELECTION_FILES,
        labels=os.path.relpath(job.labels, job.out),
        num_rows=summary["num_rows"],
        num_selected=summary["num_selected"],
        num_copies=summary["num_copies"],
    )


def _picked(shape: type, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the figures that a TypedDict has."""
    return {name: figures[name] for name in get_type_hints(shape) if name in figures}


def check_summary(summary: Summary, config: Select) -> None:
    """Refuse a selection that is empty or lost a class; warn if the teacher sees quite another mix of classes.

    Raises:
        UserError: the selection is refused; the message names the classes, the keys and the fix.
    """
    classes = summary["classes"]
    surest = max(
        (edge for edge, n in zip(summary["histogram"]["edges"], summary["histogram"]["all"], strict=False) if n),
        default=0.0,
    )
    if not summary["num_selected"]:
        raise UserError(
            f"select.threshold {config.threshold} leaves none of {summary['num_rows']} pseudo-labels (the surest has a "
            f"confidence of at least {surest:.2f}); lower select.threshold or train a better teacher"
        )
    unwanted = {i for i, share in enumerate(config.prior) if share == 0}
    lost = [c for i, c in enumerate(classes) if not c["kept"] and i not in unwanted]
    if lost and not config.allow_empty_classes:
        names = ", ".join(f"`{c['name']}` ({c['predicted']} predicted)" for c in lost[:5])
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise UserError(
            f"no pseudo-label of class {names}{more} is left at select.threshold {config.threshold}; lower "
            "select.threshold, train a better teacher, or set select.allow_empty_classes to true"
        )
    if summary["total_variation"] > GROSS_DEVIATION:
        worst = max(classes, key=lambda c: abs(c["predicted_prior"] - c["labeled_prior"]))
        log.warning(
            "the teacher's predictions are spread over the classes quite unlike the labeled images (total variation "
            "%.2f; most for `%s`: %.1f%% predicted, %.1f%% labeled). If the unlabeled images are not really so, train "
            "a better teacher; if they are, consider select.balance `off` or `prior`",
            summary["total_variation"],
            worst["name"],
            100 * worst["predicted_prior"],
            100 * worst["labeled_prior"],
        )


def find_notices(summary: Summary, config: Select) -> list[Notice]:
    """What the log, the summary and the report warn of, with the fix: a filter that leaves next to nothing."""
    left, rows = summary.get("num_left", summary["num_rows"]), summary["num_rows"]
    if left >= FEW * rows:
        return []
    if not config.threshold:
        key, fix = f"select.share {config.share:g}", "raise it, e.g. to 0.5"
    else:
        key = f"select.threshold {config.threshold}{f' with select.share {config.share:g}' if config.share < 1 else ''}"
        fix = f"lower it to {_threshold_for(summary, TENTH):.2f}, which leaves a tenth or more, set it to adaptive, or "
        fix += "take select.share in its place"
    text = (
        f"{key} leaves {left:,} of {rows:,} unlabeled images ({left / rows:.2%}), so students learn nearly nothing new"
    )
    return [Notice(name="few-pseudo-labels", text=f"{text}; {fix}")]


def notices_of_calibration(summary: Summary, config: Select) -> list[Notice]:
    """That a number is compared with confidences of which nobody knows what they are worth, with the fix."""
    if not config.threshold or config.threshold == "adaptive" or "on_val" in summary:
        return []
    text = (
        f"select.threshold {config.threshold} is compared with confidences whose calibration error was not measured, "
        "so it need not be the share of right labels; label.temperature: auto fits a temperature on val and measures it"
    )
    return [Notice(name="confidences-not-calibrated", text=text)]


def _threshold_for(summary: Summary, share: float) -> float:
    """The highest edge of the histogram above which at least this share of all images is."""
    edges, counts = summary["histogram"]["edges"], summary["histogram"]["all"]
    above = np.cumsum(counts[::-1])[::-1]
    return max(edges[i] for i in range(len(counts)) if above[i] >= share * summary["num_rows"])


def _prior_of(labeled: Dataset) -> F64Array:
    known = labeled.labels[labeled.labels >= 0]
    return np.bincount(known, minlength=len(labeled.classes)) / max(len(known), 1)
