"""A batch of images as the models of a prediction, one or several, see it, and what they say of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from pipeline.arrays import I64Array
from pipeline.errors import UserError
from pipeline.evaluate.metrics import NotFinite
from pipeline.evaluate.patches import packed
from pipeline.evaluate.predictor import Predictor, Seen, mean_logits
from pipeline.predict.images import Images
from pipeline.predict.parts import Part
from pipeline.remote import RemoteError
from pipeline.shards.decode import Pixels
from pipeline.shards.values import Facts, Survey

Member = tuple[Predictor, I64Array]
"""A model, and the columns of its answers in the order of the first model's classes."""


class Batch(NamedTuple):
    """Some images as every member sees them."""

    names: list[str]
    pixels: dict[Seen, Pixels]
    """What models see of images -> uint8 [n, S, S, 3], or at several sides as `packed` makes them; one black image if
    none is good, because not every network takes an empty batch."""
    facts: list[Facts]
    bad: dict[str, str]


def read_batch(images: Images, rows: I64Array, predictors: Sequence[Predictor], pool: ThreadPoolExecutor) -> Batch:
    """The images of some rows as each model sees them, without the bad ones. What several see alike is read once."""
    views = dict.fromkeys(predictor.seen for predictor in predictors)

    def one(row: int) -> tuple[list[Pixels], Facts] | str:
        try:
            levels = [
                [images.pixels(row, side, interpolation, crop) for side in sides]
                for sides, interpolation, crop in views
            ]
        except RemoteError:  # which is no fault of the image
            raise
        except UserError as error:
            return str(error)
        return [packed([pixels for pixels, _ in seen]) for seen in levels], levels[0][0][1]

    names = [images.places[row].name for row in rows.tolist()]
    results = list(zip(names, pool.map(one, rows.tolist()), strict=True))
    good = [(name, *result) for name, result in results if not isinstance(result, str)]
    pixels = {
        view: np.stack([each[1][number] for each in good]) if good else _black(view[0])
        for number, view in enumerate(views)
    }
    bad = {name: result for name, result in results if isinstance(result, str)}
    return Batch([each[0] for each in good], pixels, [each[2] for each in good], bad)


def _black(sides: Sequence[int]) -> Pixels:
    return packed([np.zeros((1, side, side, 3), np.uint8) for side in sides])


def predict_batch(members: Sequence[Member], batch: Batch, top_k: int, *, probabilities: bool, features: bool) -> Part:
    """What the members say of a batch, by the mean of their probabilities; features are those of a single one.

    Raises:
        NotFinite: a prediction is not finite.
    """
    survey = Survey()
    for name, facts in zip(batch.names, batch.facts, strict=True):
        survey.add(name, facts)
    each, found = [], None
    for predictor, columns in members:
        images = predictor.on_host(batch.pixels[predictor.seen])
        if features:
            logits, found = predictor.logits_and_features(images)
        else:
            logits = predictor.logits(images)
        each.append(logits if len(members) == 1 else logits[:, columns])
    logits = mean_logits(each)
    if not torch.isfinite(logits).all():
        raise NotFinite(f"the model's predictions of {batch.names[0]} and the images after it are not finite")
    probs = torch.softmax(logits, dim=1)
    top, ids = probs.topk(min(top_k, probs.shape[1]), dim=1)
    num_rows = len(batch.names)
    return Part(
        names=batch.names,
        ids=ids.int().cpu().numpy()[:num_rows],
        top=top.cpu().numpy()[:num_rows],
        probabilities=probs.cpu().numpy()[:num_rows] if probabilities else None,
        features=None if found is None else found.half().cpu().numpy()[:num_rows],
        bad=batch.bad,
        survey=survey,
    )
