"""The controls: what the unlabeled images were worth, and what a probe on the encoder gives without training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Config, Probe, Training
from pipeline.config.base import completed
from pipeline.config.training import COMPUTED
from pipeline.config.unread import reads
from pipeline.errors import UserError
from pipeline.methods.method import Method
from pipeline.methods.round import Round, best_of
from pipeline.models.input import input_of
from pipeline.runs.finetune import finetuning
from pipeline.runs.run import Run

log = logging.getLogger("selftrain.loop")


def fit_probe(run: Run, method: Method, final: Round) -> Path | None:
    """Fit a probe on the encoder that the final model, or the teacher, started from, with labels alone.

    It is what the labels and the encoder give without any training (DINOv3's card advises it first), and reports say
    so where a student does not reach it. None if the run has one as its teacher, if nothing starts from trained
    weights, or if the config does not want it.
    """
    config, recipes = run.config, _recipes(run.config, method, final.round)
    trained = _trained(recipes)
    if not config.evaluate.probe or trained is None or any(recipe.probe is not None for recipe in recipes):
        return None
    try:
        training = _as_probe(trained, Probe(flip=config.evaluate.flip))
        return run.probe("probe", 0, training, "control", run.embed(training, ("labeled", "val")))
    except UserError as error:
        log.warning("there is no probe beside the models of this run: %s", error)
        return None


def why_no_probe(config: Config, method: Method, final_round: int) -> str:
    """Why a finished run has no probe beside its models, in words; empty if its teacher is one."""
    recipes = _recipes(config, method, final_round)
    if any(recipe.probe is not None for recipe in recipes):
        return ""
    if not config.evaluate.probe:
        return "evaluate.probe is false"
    trained = _trained(recipes)
    if trained is None or trained.start is None:
        return "no training starts from pretrained weights, so there is no encoder that one could read"
    return f"none could be fitted on {trained.start.model}; the log of the run says why"


def _recipes(config: Config, method: Method, final_round: int) -> list[Training]:
    """Those of the teacher and of the final model."""
    numbers = [0] if method.reads("teacher") else []
    numbers += [max(final_round, 1)] if reads(config, "student") else []  # without students their start is nobody's
    return [method.recipe(config, number) for number in numbers]


def _trained(recipes: Sequence[Training]) -> Training | None:
    """The first that starts from trained weights."""
    return next((r for r in recipes if r.start is not None and r.start.mode == "init"), None)


def _as_probe(training: Training, probe: Probe) -> Training:
    """The probe on the encoder that a training starts from, which sees what those weights expect: nothing is computed
    for it. Raises UserError if they expect what no probe sees."""
    assert training.start is not None
    computed = ("preprocessing", *COMPUTED[training.preprocessing])
    expected = {"preprocessing": "given", **input_of(training.start, training.model)}
    seen = {key: expected[key] for key in computed if key in expected}
    return completed(training, "a probe on its start", probe=probe, distillation=None, **seen)


def train_control(run: Run, method: Method, rounds: Sequence[Round], final: Round) -> Path:
    """Train the method's control of the final model, and fine-tune it if the final model is fine-tuned."""
    base = final
    if final.role == "finetune":
        students = [r for r in rounds if r.role == "student"]
        base = students[0] if method.finetunes == "student" else best_of([r for r in rounds if r is not final])
    number = max(base.round, 1)
    training = method.control(run.config, rounds, base)
    is_probe = training.probe is not None  # without pseudo-labels it is the teacher
    control = rounds[0].train if is_probe else run.train("control", number, training, "control")
    if final.role == "finetune" and run.config.finetune is not None:
        training = finetuning(run.config.finetune, control, method.recipe(run.config, number))
        return run.train("control", final.round, training, "control")
    return control
