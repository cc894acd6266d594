"""The verdict on a run: sentences that claim no more than the figures on test show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config import Data, JudgeBy
from pipeline.errors import UserError
from pipeline.evaluate.judging import TITLES, compare
from pipeline.evaluate.metrics import Metrics
from pipeline.evaluate.per_class import per_class
from pipeline.report.record import RunRecord, StageRecord
from pipeline.runs.result import CONTROL, FINAL, PROBE, TEACHER
from pipeline.shards.dataset import has_test
from pipeline.stages.progress import read_progress

_NAMES = {
    TEACHER: "the round 0 teacher",
    CONTROL: "a control trained as long on labeled images alone",
    PROBE: "a probe on the frozen encoder",
}

_SHORT_NAMES = {TEACHER: "the teacher", CONTROL: "the control", PROBE: "the probe"}


@dataclass(frozen=True)
class Gain:
    """The figure on test of the final model minus another's, of the kind that `rounds.judge_by` names. The interval
    needs the answers of both models."""

    over: str
    points: float
    interval: tuple[float, float] | None

    @property
    def certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run, in sentences."""

    sentences: tuple[str, ...]
    gains: Mapping[str, Gain]
    finished: bool


def judge(run: RunRecord) -> Verdict:
    """Compare the final model with the round-0 teacher and with the control."""
    if run.result is None:
        return Verdict(_unfinished(run), {}, finished=False)
    round_, by = run.result["final"]["round"], run.config.rounds.judge_by
    if FINAL not in run.test:
        entry = run.result_of(round_)
        val = run.result["final"]["val_top1"] if by == "top1" else entry["judged"]
        chosen = f"The final model is that of round {round_}, {_right_on(val, by, 'of the val images', 'on val')}."
        if run.control is not None and not run.control.complete:
            return Verdict((chosen, "This run is not finished: its control is under way."), {}, finished=False)
        if not _has_test(run.config.data):
            return Verdict((chosen, "The data has no test split, so this figure is optimistic."), {}, finished=True)
        return Verdict((chosen, "This run is not finished: test has not been evaluated."), {}, finished=False)
    final = run.test[FINAL]
    images = f"{final.num_samples:,} test images"
    head = _right_on(_figure(final, by), by, f"of {images}", f"on {images}")
    final_model = next(train for train in run.trainings if train.round == round_)
    is_finetuned = final_model.role == "finetune"
    base = next((t for t in run.trainings if is_finetuned and final_model.starts_from(t)), final_model)
    if not base.saw_unlabeled:
        had_students = any(train.role == "student" for train in run.trainings)
        name = "the teacher, a probe of the labels alone," if base.is_probe else "the teacher"
        name = "the teacher, fine-tuned," if is_finetuned else name
        why = f"No student beat the round 0 teacher on val, so {name} is the final model; it" if had_students else "It"
        gains = {PROBE: _gain(PROBE, run, by)} if PROBE in run.test else {}
        said = (f"{why} is {head}.", *_beside_probe(gains, PROBE), *_of_uneven(run, by, ()))
        return Verdict(said, gains, finished=True)
    others = [name for name in (TEACHER, CONTROL, PROBE) if name in run.test and (name != TEACHER or round_ > 0)]
    gains = {name: _gain(name, run, by) for name in others}
    first = next((train for train in run.trainings if train.role == "teacher"), None)
    is_probe = first is not None and first.is_probe
    names = {**_NAMES, TEACHER: f"{_NAMES[TEACHER]} (a probe of the labels alone)"} if is_probe else _NAMES
    shown = [f"{_say(gain)} {names[name]}" for name, gain in gains.items()]
    leads = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    sentences = [f"The final model, of round {round_}, is {head}{': ' if leads else ''}{leads}."]
    of_probe = TEACHER if is_probe else PROBE
    if CONTROL in gains:
        sentences.append(_conclude(gains[CONTROL]))
    elif final_model.is_probe and TEACHER in gains:
        sentences.append(_conclude(gains[TEACHER], "teacher"))
        of_probe = ""  # that is said by this
    else:
        missing = "The control is missing"
        if not run.config.evaluate.control:
            missing = "No control was trained (evaluate.control is off)"
        gain = "the gain may come from longer training alone"
        sentences.append(f"{missing}: {gain if gains else 'what the unlabeled images were worth is not known'}.")
    sentences += _beside_probe(gains, of_probe, also=CONTROL in gains and not gains[CONTROL].certain)
    return Verdict((*sentences, *_of_uneven(run, by, others)), gains, finished=True)


def _has_test(data: Data) -> bool:
    try:
        return has_test(data)
    except UserError:  # the data is out of reach; most data has test images
        return True


def _figure(metrics: Metrics, by: JudgeBy) -> float:
    """The figure that models are judged by; nan where neither the file has it nor the answers are there."""
    found: float | None = getattr(metrics, by)
    return math.nan if found is None else found


def _right_on(value: float, by: JudgeBy, of: str, on: str) -> str:
    return f"right on {100 * value:.1f}% {of}" if by == "top1" else f"at {100 * value:.1f}% {TITLES[by]} {on}"


def _of_uneven(run: RunRecord, by: JudgeBy, others: Sequence[str]) -> tuple[str, ...]:
    """What accuracy hides if the classes of test are uneven; nothing if they are even, or judged alike already."""
    answers = run.test_predictions.get(FINAL)
    found = per_class(answers.label, answers.pred) if by == "top1" and answers is not None else None
    if found is None or not found.is_uneven:
        return ()
    gains = {name: _gain(name, run, "balanced_accuracy") for name in others}
    leads = " and ".join(
        f"{_say(gain)} {_SHORT_NAMES[name]}{'' if gain.certain else ' (within chance)'}" for name, gain in gains.items()
    )
    return (
        f"The classes are uneven ({found.count[found.present].min():,} to {found.count.max():,} test images); counting "
        f"each alike, its balanced accuracy is {100 * found.balanced_accuracy:.1f}%{': ' if leads else ''}{leads}.",
    )


def _gain(over: str, run: RunRecord, by: JudgeBy) -> Gain:
    ours, theirs = run.test_predictions.get(FINAL), run.test_predictions.get(over)
    if ours is None or theirs is None or not np.array_equal(ours.label, theirs.label):
        return Gain(over, _figure(run.test[FINAL], by) - _figure(run.test[over], by), None)
    difference, low, high = compare(ours.label, ours.pred, theirs.pred, by)
    return Gain(over, difference, (low, high))


def _say(gain: Gain) -> str:
    points = round(100 * gain.points, 1)
    return "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _beside_probe(gains: Mapping[str, Gain], name: str, *, also: bool = False) -> tuple[str, ...]:
    """What a lead over the probe of the labels alone says; nothing if the final model is surely above it. `also` is
    whether the sentence before says what test does not show."""
    gain = gains.get(name)
    if gain is None or (gain.points > 0 and gain.certain):
        return ()
    if gain.points >= 0 or not gain.certain:
        begin = "Nor does test" if also else "But test does not"
        return (f"{begin} show that the final model is better than a probe of the labels alone.",)
    return ("But the final model does not reach a probe of the labels alone, which takes seconds: prefer that.",)


def _conclude(gain: Gain, control: str = "control") -> str:
    if gain.interval is None:
        return "The models' answers were not kept, so whether that is more than chance cannot be told."
    if not gain.certain:
        return f"The difference to the {control} is within chance: test does not show that the unlabeled images helped."
    return "So the unlabeled images helped." if gain.points > 0 else "So the unlabeled images did harm."


def _unfinished(run: RunRecord) -> tuple[str, ...]:
    stages = list(run.stages)
    done = sum(stage.complete for stage in stages)
    sentences = [f"This run is not finished: {done} of the {len(stages)} stages it began are complete."]
    under_way = [_where(run, stage) for stage in stages if not stage.complete]
    if under_way:
        sentences.append(f"Under way: {', '.join(under_way)}.")
    if run.num_siblings:
        sentences.append(f"{run.num_siblings} stages of other settings lie beside those shown, which were begun last.")
    return (*sentences, "Figures on test come last.")


def _where(run: RunRecord, stage: StageRecord) -> str:
    progress = read_progress(stage.path, stage.path.name)
    done = f" ({progress.done:,} of {progress.total:,} {progress.unit})" if progress else ""
    return f"{stage.path.relative_to(run.path)}{done}"
