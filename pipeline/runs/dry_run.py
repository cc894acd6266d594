"""The networks of a run, each tried at every size that it will meet, before the first of them is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import Adaptation, Config, Finetune, Training
from pipeline.config.evaluate import Patches
from pipeline.config.training import LARGEST_WHITENED
from pipeline.errors import UserError
from pipeline.evaluate.patches import sides_of
from pipeline.methods.method import Method
from pipeline.models import build
from pipeline.models.dropping import add_dropping
from pipeline.models.format import read_info
from pipeline.models.forward import check_forward
from pipeline.models.initialization import initialize
from pipeline.models.weights import tells_itself
from pipeline.train.network import adapt


def check_networks(config: Config, method: Method, num_classes: int) -> None:
    """Try each network that the config describes, at the size of its training and at that of the fine-tune.

    Raises:
        UserError: an architecture does not exist, refuses an argument, or cannot take images of a size.
    """
    first = 0 if method.reads("teacher") else 1
    last = config.rounds.total if method.reads("rounds") else 1
    seen: list[tuple[str, Patches]] = [("evaluate", config.evaluate)]
    if method.reads("label") and last:
        seen.append(("label", config.label))
    for number in range(first, last + 1):
        recipe = method.recipe(config, number)
        section = "student" if number and recipe.probe is None else "teacher"
        tuned = config.finetune if method.finetunes in ("best", section) else None
        check_training(section, recipe, num_classes, config.runtime.ranks, tuned)
        for name, how in seen:
            check_patches(section, recipe, name, how)
    for number, member in enumerate(config.committee if method.reads("committee") and last else ()):
        check_training(f"committee.{number}", member, num_classes, config.runtime.ranks)


def check_patches(section: str, training: Training, name: str, how: Patches) -> None:
    """Refuse, before the first training, what a model could not see at its end. Raises UserError."""
    try:
        sides_of(training.seen_size, training.crop_pct, how.crops, how.scales)
    except UserError as error:
        raise UserError(f"{name}: {error} ({section}.image_size {training.seen_size})") from error


def check_training(
    section: str, training: Training, num_classes: int, processes: int, finetune: Finetune | None = None
) -> None:
    """Try the network of one training, and of the fine-tune that may follow it. Raises UserError as above."""
    architecture, model_args, sizes = training.model, training.built_with, {"image_size": training.image_size}
    start = training.start
    is_used = start is not None and start.mode == "use"
    if start is not None and is_used and tells_itself(start):
        info = read_info(Path(start.model))
        architecture, model_args, sizes = info.architecture, info.model_args, {"input_size": info.input_size[-1]}
    elif training.evaluation_size:
        sizes["evaluation_size"] = training.evaluation_size
    is_frozen = is_used or training.probe is not None
    images = [] if is_frozen else [(training.batch_size + training.unlabeled_batch_size) // training.accumulation]
    if finetune is not None:
        sizes["finetune.image_size"] = finetune.image_size
        if training.preprocessing == "pca_whitening" and finetune.image_size > LARGEST_WHITENED:
            raise UserError(
                f"`finetune.image_size` is {finetune.image_size}, but images are whitened (preprocessing: "
                f"pca_whitening) up to {LARGEST_WHITENED} pixels; lower it, or set preprocessing to mean_std"
            )
        images.append(finetune.batch_size // finetune.accumulation)
    batch_size = min((number // processes for number in images), default=1)
    try:
        check_forward(
            architecture, num_classes, sizes, model_args=model_args, batch_size=batch_size, trains=bool(images)
        )
        if not is_used:
            _check_adaptation(training, num_classes)
        if finetune is not None:
            asked = {key: getattr(finetune, key) for key in (*Adaptation.model_fields, "frozen_layers")}
            _check_adaptation(Training(model=architecture, model_args=model_args, **asked), num_classes)
    except UserError as error:
        raise UserError(f"{section}: {error}") from error


def _check_adaptation(training: Training, num_classes: int) -> None:
    """Try how it begins, and what is dropped, frozen, thawed and computed again, on a network without values."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        dropout, depth = training.dropout, training.stochastic_depth
        args = training.built_with
        model = build(training.model, num_classes, dropout=dropout, stochastic_depth=depth, model_args=args)
        initialize(model, training)
        adapt(add_dropping(model, training), training)
