"""The fine-tune: a last, short training at a higher resolution, on labeled images without noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Finetune, Start, StrongView, Training, WeakView
from pipeline.config.training import COMPUTED
from pipeline.methods.method import Method, OnRound
from pipeline.methods.round import Round, best_of
from pipeline.models.format import read_info
from pipeline.runs.run import Run


def finetune(run: Run, method: Method, rounds: Sequence[Round], on_round: OnRound) -> list[Round]:
    """All rounds and, if the config asks for it, a fine-tune of the best one as another round.

    Methods whose student meets no labeled image fine-tune the student instead (Pham 2021).
    """
    settings = run.config.finetune
    if settings is None:
        return list(rounds)
    number, base = rounds[-1].round + 1, rounds[-1] if method.finetunes == "student" else best_of(rounds)
    training = finetuning(settings, base.train, method.recipe(run.config, base.round))
    tuned = run.judge("finetune", number, run.train("finetune", number, training, f"rounds/{number}"))
    on_round(tuned)
    return [*rounds, tuned]


def finetuning(settings: Finetune, model: Path, recipe: Training) -> Training:
    """The training that fine-tunes a model.

    Of the recipe of the model's own training it keeps mirroring, and what is done about classes of unequal size. A mean
    image and a whitening are computed anew, at its own size.
    """
    info = read_info(model)
    values = {"mean": info.mean, "std": info.std, "preprocessing": info.preprocessing}
    normalization = {key: value for key, value in values.items() if key not in COMPUTED[info.preprocessing]}
    return Training(
        model=info.architecture,
        model_args=info.model_args,
        crop_pct=info.crop_pct,
        crop_mode=info.crop,
        interpolation=info.interpolation,
        weak=WeakView(crop="none", flip=recipe.weak.flip),
        strong=StrongView(num_ops=0),
        noise_labeled=False,
        balance_labeled=recipe.balance_labeled,
        logit_adjustment=recipe.logit_adjustment,
        start=Start(model=str(model), mode="init"),
        **normalization,
        **dict(settings),
    )
