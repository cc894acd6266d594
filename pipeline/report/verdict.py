"""The verdict on a run: sentences that claim no more than the figures on test show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.config import Data
from pipeline.errors import UserError
from pipeline.evaluate.metrics import Metrics, paired_difference
from pipeline.evaluate.predictions import Predictions
from pipeline.report.record import RunRecord, StageRecord
from pipeline.runs.result import CONTROL, FINAL, PROBE, TEACHER
from pipeline.shards.dataset import has_test
from pipeline.stages.progress import read_progress

_NAMES = {
    TEACHER: "the round 0 teacher",
    CONTROL: "a control trained as long on labeled images alone",
    PROBE: "a probe on the frozen encoder",
}


@dataclass(frozen=True)
class Gain:
    """The test accuracy of the final model minus another's. The interval needs the answers of both models."""

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
    round_, val = run.result["final"]["round"], run.result["final"]["val_top1"]
    if FINAL not in run.test:
        chosen = f"The final model is that of round {round_}, right on {100 * val:.1f}% of the val images."
        if run.control is not None and not run.control.complete:
            return Verdict((chosen, "This run is not finished: its control is under way."), {}, finished=False)
        if not _has_test(run.config.data):
            return Verdict((chosen, "The data has no test split, so this figure is optimistic."), {}, finished=True)
        return Verdict((chosen, "This run is not finished: test has not been evaluated."), {}, finished=False)
    final = run.test[FINAL]
    head = f"{100 * final.top1:.1f}% of {final.num_samples:,} test images"
    final_model = next(train for train in run.trainings if train.round == round_)
    is_finetuned = final_model.role == "finetune"
    base = next((t for t in run.trainings if is_finetuned and final_model.starts_from(t)), final_model)
    if not base.saw_unlabeled:
        had_students = any(train.role == "student" for train in run.trainings)
        name = "the teacher, fine-tuned," if is_finetuned else "the teacher"
        why = f"No student beat the round 0 teacher on val, so {name} is the final model; it" if had_students else "It"
        sentence = f"{why} is right on {head}."
        gains = {PROBE: _gain(PROBE, run.test, run.test_predictions)} if PROBE in run.test else {}
        return Verdict((sentence, *_beside_probe(gains, PROBE)), gains, finished=True)
    others = [name for name in (TEACHER, CONTROL, PROBE) if name in run.test and (name != TEACHER or round_ > 0)]
    gains = {name: _gain(name, run.test, run.test_predictions) for name in others}
    first = next((train for train in run.trainings if train.role == "teacher"), None)
    is_probe = first is not None and first.is_probe
    names = {**_NAMES, TEACHER: "the round 0 probe, which saw labels alone"} if is_probe else _NAMES
    shown = [f"{_say(gain)} {names[name]}" for name, gain in gains.items()]
    leads = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    sentences = [f"The final model, of round {round_}, is right on {head}{': ' if leads else ''}{leads}."]
    if is_probe or PROBE in gains:
        sentences += _beside_probe(gains, TEACHER if is_probe else PROBE)
    if CONTROL in gains:
        sentences.append(_conclude(gains[CONTROL]))
    elif final_model.is_probe and TEACHER in gains:
        sentences.append(_conclude(gains[TEACHER], "round 0 probe"))
    else:
        missing = "The control is missing"
        if not run.config.evaluate.control:
            missing = "No control was trained (evaluate.control is off)"
        gain = "the gain may come from longer training alone"
        sentences.append(f"{missing}: {gain if gains else 'what the unlabeled images were worth is not known'}.")
    return Verdict(tuple(sentences), gains, finished=True)


def _has_test(data: Data) -> bool:
    try:
        return has_test(data)
    except UserError:  # the data is out of reach; most data has test images
        return True


def _gain(over: str, test: Mapping[str, Metrics], predictions: Mapping[str, Predictions]) -> Gain:
    ours, theirs = predictions.get(FINAL), predictions.get(over)
    if ours is None or theirs is None or not np.array_equal(ours.label, theirs.label):
        return Gain(over, test[FINAL].top1 - test[over].top1, None)
    difference, low, high = paired_difference(ours.right, theirs.right)
    return Gain(over, difference, (low, high))


def _say(gain: Gain) -> str:
    points = round(100 * gain.points, 1)
    return "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _beside_probe(gains: Mapping[str, Gain], name: str) -> tuple[str, ...]:
    """What a lead over the probe of the labels alone says; nothing if the final model is surely above it."""
    gain = gains.get(name)
    if gain is None or (gain.points > 0 and gain.certain):
        return ()
    if gain.points >= 0 or not gain.certain:
        return ("Test does not show that the final model is better than a probe of the labels alone.",)
    return ("The final model does not reach a probe of the labels alone, which takes seconds: prefer that.",)


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
