"""The plots of what only some runs measure. A method names its panels in its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.methods import METHODS
from pipeline.report import plots
from pipeline.report.canvas import canvas, color_of
from pipeline.report.lineage import title_of
from pipeline.report.record import RunRecord, TrainRecord
from pipeline.stages.kinds import load_object

_FEEDBACK = (
    "The feedback is how much the student's step on the teacher's labels lowered its labeled loss, to first order "
    "(with meta.feedback: cosine, the cosine of the two gradients). The teacher makes labels likelier whose feedback "
    "is above the baseline."
)


@dataclass(frozen=True)
class Panel:
    """One plot with its caption."""

    png: bytes
    caption: str = ""


def panels_of(run: RunRecord) -> list[Panel]:
    """The plots of the run's method, and of what its config measures beside, that have something to show already."""
    drawn: list[Panel | None] = [load_object(name)(run) for name in METHODS[run.config.method].panels]
    drawn.append(dead_units(run))
    return [panel for panel in drawn if panel is not None]


def dead_units(run: RunRecord) -> Panel | None:
    """The share of dead units of each training; None if it was not counted (`evaluate.dead_units`)."""
    curves = _not_empty([plots.curve(title_of(train), train.evaluations, "dead_units") for train in run.trainings])
    if not curves:
        return None
    with canvas(height=2.9) as drawing:
        (ax,) = drawing.axes
        for i, (name, x, y) in enumerate(curves):
            ax.plot(x, 100 * y, "o-", ms=3.5, color=color_of(i), label=name)
        ax.set(title="Dead units (zero for every image of val)", xlabel="step", ylabel="share (%)", xlim=(0, None))
        ax.set_ylim(0, None)
        ax.legend(fontsize=8.5)
    return Panel(drawing.png)


def feedback(run: RunRecord) -> Panel | None:
    """The feedback of a student to its teacher; None if it was not measured."""
    train = _that_measured(run, "feedback")
    if train is None:
        return None
    curves = {name: plots.curve(name, train.losses, name) for name in ("feedback", "baseline", "cosine")}
    found = {name: curve for name, curve in curves.items() if len(curve[1])}
    used = [line for line in train.losses if line.get("uda_gradient")]
    if used:
        ratio = [line["feedback_gradient"] / line["uda_gradient"] for line in used]
        found["ratio"] = ("ratio", np.array([line["step"] for line in used], float), np.array(ratio, float))
    unit = "cosine of gradients" if run.config.meta.feedback == "cosine" else "fall of the labeled loss (nats)"
    return Panel(plots.feedback_curves(found, unit), _FEEDBACK)


def consistency(run: RunRecord) -> Panel | None:
    """The share of predictions that are sure enough to teach, and the accuracies; None if it was not measured."""
    train = _that_measured(run, "mask_rate") or _that_measured(run, "student_loss")
    if train is None:
        return None
    names = {"mask_rate": "sure enough to teach", "student_agreement": "student agrees with the sampled label"}
    shares = [plots.curve(text, train.losses, name) for name, text in names.items()]
    of_both = {"val_top1": train.role, "teacher_val_top1": "teacher"}
    accuracies = [plots.curve(text, train.evaluations, name) for name, text in of_both.items()]
    return Panel(plots.teacher_and_student(_not_empty(shares), _not_empty(accuracies)))


def _that_measured(run: RunRecord, name: str) -> TrainRecord | None:
    return next((t for t in run.trainings if any(line.get(name) is not None for line in t.losses)), None)


def _not_empty(curves: Sequence[plots.Curve]) -> list[plots.Curve]:
    return [curve for curve in curves if len(curve[1])]
