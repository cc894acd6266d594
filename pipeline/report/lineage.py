"""The lineage of a run: boxes and arrows show which teacher labeled what, and which student learned from it.

They are laid out for an inline SVG. Arrows follow the fingerprints in stage.json, not the folder names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.report.record import RoundRecord, RunRecord, StageRecord, TrainRecord

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 300, 58, 46, 38
WIDTH = 3 * BOX_WIDTH + 2 * GAP_X + 24


@dataclass(frozen=True)
class Box:
    """One stage in the diagram."""

    x: int
    y: int
    title: str
    detail: str
    fingerprint: str
    kind: str
    width: int = BOX_WIDTH
    height: int = BOX_HEIGHT


@dataclass(frozen=True)
class Diagram:
    """The boxes, and the arrows as SVG path data."""

    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[str, ...]
    summary: str
    """The diagram in words, for people who cannot see it."""
    width: int = WIDTH


def draw(run: RunRecord, details: Mapping[str, str]) -> Diagram:
    """Lay out a run, one row per round. `details` has one line of text per stage fingerprint."""
    rows: list[tuple[StageRecord | None, StageRecord | None, TrainRecord]] = [
        (r.label, r.select, r.train) for r in run.rounds if r.train is not None
    ]
    if run.control is not None:
        rows.append((None, None, run.control))
    boxes: list[Box] = []
    arrows: list[str] = []
    sentences: list[str] = []
    for i, (label, select, train) in enumerate(rows):
        y = i * (BOX_HEIGHT + GAP_Y) + 1
        stages = [(label, "Pseudo-labels"), (select, "Selection"), (train, title_of(train))]
        for column, (stage, title) in enumerate(stages):
            if stage is not None:
                x = column * (BOX_WIDTH + GAP_X) + 1
                detail = details.get(stage.fingerprint, "")
                boxes.append(Box(x, y, title, detail, stage.fingerprint[:8], str(stage.record["kind"])))
        middle = y + BOX_HEIGHT // 2
        for column in (0, 1) if select is not None and label is not None else ():
            start = (column + 1) * BOX_WIDTH + column * GAP_X + 1
            arrows.append(f"M{start} {middle}H{start + GAP_X - 6}")
        if label is not None and select is None and train.reads(label):
            arrows.append(f"M{BOX_WIDTH + 1} {middle}H{2 * (BOX_WIDTH + GAP_X) - 5}")
        for teacher in [k for k, (_, _, t) in enumerate(rows) if label is not None and label.reads(t)]:
            arrows.append(_elbow(teacher, i))
            sentences.append(f"{title_of(rows[teacher][2])} labeled the images for {title_of(train).lower()}.")
        for source in [k for k, (_, _, t) in enumerate(rows) if train.starts_from(t)]:
            arrows.append(_start(source, i))
            sentences.append(f"{title_of(train)} started with the weights of {title_of(rows[source][2]).lower()}.")
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2
    return Diagram(height, tuple(boxes), tuple(arrows), " ".join(sentences))


def title_of(train: TrainRecord) -> str:
    """The name of a training in the report."""
    if train.role == "finetune":
        return "Fine-tune"
    role = f"{train.role} (probe)" if train.is_probe and train.role != "probe" else train.role
    return role.capitalize() if train.round is None else f"Round {train.round} {role}"


def teachers_of(round_: RoundRecord, run: RunRecord) -> list[TrainRecord]:
    """The trainings whose models labeled the images of a round."""
    return [t for t in run.trainings if round_.label is not None and round_.label.reads(t)]


def labeled_by(round_: RoundRecord, run: RunRecord) -> str:
    """Who labeled the images of a round, and whether other labels were averaged with theirs."""
    names = ", ".join(title_of(t) for t in teachers_of(round_, run)) or "a model from outside the run"
    return names if round_.merge is None else f"{names}, and label.others"


def _start(source: int, row: int) -> str:
    """The arrow from a model's box to that of a later model, which started with its weights."""
    step = BOX_HEIGHT + GAP_Y
    left = 2 * (BOX_WIDTH + GAP_X) + 1
    bottom, top = source * step + 1 + BOX_HEIGHT, row * step + 1
    if source == row - 1:
        return f"M{left + 3 * BOX_WIDTH // 4} {bottom}V{top - 6}"
    right = left + BOX_WIDTH
    x = right + 20  # beside the arrows of labels that skip a round
    return f"M{right} {bottom - BOX_HEIGHT // 4}H{x}V{top + BOX_HEIGHT // 4}H{right + 6}"


def _elbow(teacher: int, row: int) -> str:
    """The arrow from a model's box to the labels' box of a later row; it may run along the right margin."""
    step = BOX_HEIGHT + GAP_Y
    top = row * step + 1
    channel = top - GAP_Y // 2
    x = BOX_WIDTH // 2
    if teacher == row - 1:
        start = 2 * (BOX_WIDTH + GAP_X) + BOX_WIDTH // 2
        return f"M{start} {teacher * step + 1 + BOX_HEIGHT}V{channel}H{x}V{top - 6}"
    right = 3 * BOX_WIDTH + 2 * GAP_X + 1
    return f"M{right} {teacher * step + 1 + BOX_HEIGHT // 2}H{right + 14}V{channel}H{x}V{top - 6}"
