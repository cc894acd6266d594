"""The control: a supervised model at the final model's budget, which shows what the unlabeled images were worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.methods.method import Method, Round, best_of
from pipeline.runs.finetune import finetuning
from pipeline.runs.run import Run


def train_control(run: Run, method: Method, rounds: Sequence[Round], final: Round) -> Path:
    """Train the method's control of the final model, and fine-tune it if the final model is fine-tuned."""
    base = final
    if final.role == "finetune":
        students = [r for r in rounds if r.role == "student"]
        base = students[0] if method.finetunes == "student" else best_of([r for r in rounds if r is not final])
    number = max(base.round, 1)
    control = run.train("control", number, method.control(run.config, rounds, base), "control")
    if final.role == "finetune" and run.config.finetune is not None:
        training = finetuning(run.config.finetune, control, method.recipe(run.config, number))
        return run.train("control", final.round, training, "control")
    return control
