"""The table of techniques: one row per refinement, from one file per place where they act.

Tests hold it in both directions: each row has keys, code and a card, and each semantic key of a training, a labeling or
a selection belongs to a row or to PLUMBING.
"""

from __future__ import annotations

from pipeline.config.base import is_technique
from pipeline.errors import UserError
from pipeline.techniques.evaluate import EVALUATE
from pipeline.techniques.loss import LOSS
from pipeline.techniques.network import NETWORK
from pipeline.techniques.optimization import OPTIMIZATION
from pipeline.techniques.rounds import ROUNDS
from pipeline.techniques.technique import Technique, field_of
from pipeline.techniques.views import VIEWS

TECHNIQUES: dict[str, Technique] = {
    row.name: row for row in (*VIEWS, *NETWORK, *LOSS, *OPTIMIZATION, *ROUNDS, *EVALUATE)
}
"""Name -> row."""

PLUMBING = frozenset(
    {
        *("training.model", "training.model_args", "training.image_size", "training.mean", "training.std"),
        *("training.crop_pct", "training.crop_mode", "training.interpolation"),
        *("training.steps", "training.batch_size", "training.unlabeled_ratio", "training.accumulation"),
        *("training.loss_normalization", "training.keep", "training.evaluations"),
        *("training.optimizer.name", "training.optimizer.lr", "training.optimizer.lr_batch_size"),
        *("label.batch_size", "label.top_k", "select.allow_empty_classes"),
    }
)
"""Semantic keys that belong to no technique: sizes, lengths, rates and names, which every training has."""


def register_technique(row: Technique) -> None:
    """Make a technique known to documentation, tests and ablations. The method that reads its keys comes first.

    Raises:
        UserError: its name or a key is taken, a key does not exist, or the first one has no value that turns it off.
    """
    if row.name in TECHNIQUES:
        raise UserError(f"there is a technique {row.name!r} already; choose another name")
    owners = {key: other.name for other in TECHNIQUES.values() for key in other.keys}
    for key in row.keys:
        if key in owners:
            raise UserError(f"technique {row.name}: its key `{key}` is that of {owners[key]}; choose another key")
        field_of(key)
    if not is_technique(field_of(row.switch)):
        raise UserError(f"technique {row.name}: nothing turns `{row.switch}` off; declare its field by technique()")
    TECHNIQUES[row.name] = row
