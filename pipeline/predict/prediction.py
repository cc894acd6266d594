"""`selftrain predict`: what a model says of each image of a folder or archive, exactly once, also after kills."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import __version__
from pipeline.arrays import I64Array
from pipeline.config import Evaluate, Runtime, Split
from pipeline.errors import UserError
from pipeline.evaluate.metrics import NotFinite
from pipeline.evaluate.on_demand import TestRead
from pipeline.evaluate.patches import in_fingerprint, packed, patches_of
from pipeline.evaluate.predictor import Predictor
from pipeline.files import as_utf8, write_csv
from pipeline.models.format import load_model, model_digest
from pipeline.predict.formats import FEATURES, FORMATS, Block, check_extension, write_features, write_rows
from pipeline.predict.images import Images, open_images
from pipeline.predict.parts import (
    Part,
    begin,
    has_begun,
    part_path,
    read_part,
    refuse_existing,
    remove_folder,
    write_part,
)
from pipeline.shards.decode import Pixels
from pipeline.shards.index import BadImages
from pipeline.shards.values import Facts, Survey, merge
from pipeline.stages.lock import run_lock
from pipeline.stages.machine import device_of
from pipeline.threads import num_cores, read_ahead

_PART_BATCHES = 2
"""Batches of images in a part: what a kill may cost."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    out: Path
    """The table, whose extension says its format."""
    top_k: int = 1
    probabilities: bool = False
    """Whether the table has a column per class."""
    features: Path | None = None
    """Where to write the features, float16 [N, D], in the order of the rows."""
    split: Split | None = None
    bad_images: BadImages = "skip"
    overwrite: bool = False
    zip_encoding: str | None = None


@dataclass(frozen=True)
class Done:
    """What a prediction wrote."""

    num_rows: int
    bad: dict[str, str] = field(default_factory=dict)
    """Images that have no row, with the reason."""
    left_out: Path | None = None
    """The list of them; None if there are none."""


class _Batch(NamedTuple):
    names: list[str]
    pixels: Pixels
    """uint8 [n, R, R, 3], or at several scales as `packed` makes them; one black image if none is good, because not
    every network takes an empty batch."""
    facts: list[Facts]
    bad: dict[str, str]


def predict_images(
    model_path: Path,
    images_path: Path,
    wanted: Wanted,
    evaluate: Evaluate,
    runtime: Runtime,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Done:
    """Write the table of what a model says of IMAGES: `image`, `label`, `confidence`, and what else is wanted.

    The model sees each image as `selftrain evaluate` shows it. Finished parts are kept in `OUT.parts` until the table
    is written, so that the same call goes on after a kill. Bad images are listed in `OUT.left_out.csv`. If the model is
    in a run, a read of a packed test split is logged there.

    Raises:
        UserError: there is no such model or images, a file exists, the parts are of another prediction, an image is bad
            (with `bad_images="error"`), the values of the images do not use their range, or the predictions are not
            finite.
    """
    check_extension(wanted.out, "--out", FORMATS)
    if wanted.features is not None:
        check_extension(wanted.features, "--features", FEATURES)
    files = [file for file in (wanted.out, wanted.features) if file is not None]
    folder = wanted.out.with_name(f"{wanted.out.name}.parts")
    if not has_begun(folder):
        refuse_existing(files, overwrite=wanted.overwrite)
    with open_images(images_path, wanted.split, wanted.zip_encoding) as images:
        test = TestRead.of(model_path) if "test" in images.splits else None
        model, info = load_model(model_path)
        record = {
            "model": model_digest(model_path),
            "images": images.fingerprint,
            "features": str(wanted.features.absolute()) if wanted.features else None,
            **{key: getattr(wanted, key) for key in ("top_k", "probabilities")},
            **evaluate.model_dump(mode="json", include={"batch_size", "flip"}),
            **in_fingerprint(evaluate),
            "precision": runtime.precision,
            "selftrain": __version__,
        }
        torch.set_num_threads(max(runtime.threads, 1))
        how = patches_of(evaluate)
        predictor = Predictor(model, info, device=device_of(runtime), precision=runtime.precision, **how)
        with run_lock(folder):
            try:
                begin(folder, record, files, overwrite=wanted.overwrite)
                paths = _make_parts(predictor, images, wanted, evaluate.batch_size, folder, progress)
                if test is not None:
                    test.log(images_path, len(images))
                done = _join(paths, info.classes, images, wanted)
            finally:
                if not has_begun(folder):
                    remove_folder(folder)
            remove_folder(folder)
    return done


# ------------------------------------------------------------------------------------------------------------ the parts


def _make_parts(
    predictor: Predictor,
    images: Images,
    wanted: Wanted,
    batch_size: int,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Predict what the parts lack; returns them all, in order. A batch is the same images whatever was done before."""
    size = _PART_BATCHES * batch_size
    paths = [part_path(folder, number) for number in range(-(-len(images) // size))]
    survey = Survey()
    missing = []
    done = 0
    for number, path in enumerate(paths):
        if path.exists():
            survey = _checked(survey, read_part(path), images, wanted)
            done += min(size, len(images) - number * size)
        else:
            missing.append(number)
    progress(done, len(images))
    with ThreadPoolExecutor(num_cores(), "decode") as pool:

        def read(rows: I64Array) -> _Batch:
            return _read(images, rows, predictor, pool)

        every = (
            np.arange(start, min(start + batch_size, len(images)))
            for number in missing
            for start in range(number * size, min((number + 1) * size, len(images)), batch_size)
        )
        batches = read_ahead(every, read)
        for number, group in itertools.groupby(batches, lambda item: int(item[0][0]) // size):
            parts = []
            for rows, batch in group:
                parts.append(_predict(predictor, batch, wanted))
                done += len(rows)
                progress(done, len(images))
            part = _joined(parts)
            survey = _checked(survey, part, images, wanted)
            write_part(paths[number], part)
    return paths


def _read(images: Images, rows: I64Array, predictor: Predictor, pool: ThreadPoolExecutor) -> _Batch:
    """The images of some rows, without the bad ones."""

    info = predictor.info

    def one(row: int) -> tuple[Pixels, Facts] | str:
        try:
            levels = [images.pixels(row, side, info.interpolation, info.crop) for side in predictor.sides]
        except UserError as error:
            return str(error)
        return packed([pixels for pixels, _ in levels]), levels[0][1]

    names = [images.places[row].name for row in rows.tolist()]
    results = list(zip(names, pool.map(one, rows.tolist()), strict=True))
    good = [(name, *result) for name, result in results if not isinstance(result, str)]
    black = packed([np.zeros((1, side, side, 3), np.uint8) for side in predictor.sides])
    pixels = np.stack([each[1] for each in good]) if good else black
    bad = {name: result for name, result in results if isinstance(result, str)}
    return _Batch([each[0] for each in good], pixels, [each[2] for each in good], bad)


def _predict(predictor: Predictor, batch: _Batch, wanted: Wanted) -> Part:
    survey = Survey()
    for name, facts in zip(batch.names, batch.facts, strict=True):
        survey.add(name, facts)
    images = predictor.on_host(batch.pixels)
    logits, features = predictor.logits_and_features(images) if wanted.features else (predictor.logits(images), None)
    if not torch.isfinite(logits).all():
        raise NotFinite(f"the model's predictions of {batch.names[0]} and the images after it are not finite")
    probabilities = torch.softmax(logits, dim=1)
    top, ids = probabilities.topk(min(wanted.top_k, len(predictor.info.classes)), dim=1)
    num_rows = len(batch.names)
    return Part(
        names=batch.names,
        ids=ids.int().cpu().numpy()[:num_rows],
        top=top.cpu().numpy()[:num_rows],
        probabilities=probabilities.cpu().numpy()[:num_rows] if wanted.probabilities else None,
        features=None if features is None else features.half().cpu().numpy()[:num_rows],
        bad=batch.bad,
        survey=survey,
    )


def _joined(parts: list[Part]) -> Part:
    columns = {
        name: None if getattr(parts[0], name) is None else np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "top", "probabilities", "features")
    }
    names = [name for part in parts for name in part.names]
    bad = {name: why for part in parts for name, why in part.bad.items()}
    return Part(names=names, bad=bad, survey=merge([part.survey for part in parts]), **columns)  # type: ignore[arg-type]


def _checked(survey: Survey, part: Part, images: Images, wanted: Wanted) -> Survey:
    """The survey with that of another part. Raises UserError when the images so far are not to be used."""
    bad = {**images.bad, **part.bad}
    if bad and wanted.bad_images == "error":
        some = "; ".join(list(bad.values())[:3])
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise UserError(f"{some}{more}; repair them, or take --bad-images skip")
    merged = merge([survey, part.survey])
    if why := merged.mixture() or merged.dark_colours() or merged.unused_range():
        raise UserError(f"{why}; such options are those of `selftrain pack`, whose --out can be predicted")
    return merged


# -------------------------------------------------------------------------------------------------------------- joining


def _join(paths: list[Path], classes: tuple[str, ...], images: Images, wanted: Wanted) -> Done:
    """Write the files that were asked for, of all parts."""
    num_rows, width, bad = 0, 0, dict(images.bad)
    for part in map(read_part, paths):
        num_rows += len(part.names)
        bad |= part.bad
        width = 0 if part.features is None else part.features.shape[1]
    if not num_rows:
        raise UserError(f"none of {len(bad)} images is readable, e.g. {next(iter(bad.values()))}")
    if wanted.features is not None:
        write_features(wanted.features, (num_rows, width), _features(paths))
    listed = wanted.out.with_name(f"{wanted.out.name}.left_out.csv")
    if bad:
        write_csv(listed, ("image", "why"), bad.items())
    elif listed.exists():
        listed.unlink()  # that of an earlier prediction, whose table is replaced
    write_rows(wanted.out, (_block(read_part(path), classes) for path in paths))
    return Done(num_rows, bad, listed if bad else None)


def _features(paths: list[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        features = read_part(path).features
        assert features is not None
        yield features


def _block(part: Part, classes: tuple[str, ...]) -> Block:
    block: dict[str, list[str] | np.ndarray] = {"image": [as_utf8(name) for name in part.names]}
    for place in range(part.ids.shape[1]):
        suffix = f"_{place + 1}" if place else ""
        block[f"label{suffix}"] = [classes[class_id] for class_id in part.ids[:, place].tolist()]
        block[f"confidence{suffix}"] = part.top[:, place]
    if part.probabilities is not None:
        block |= {f"p_{name}": part.probabilities[:, class_id] for class_id, name in enumerate(classes)}
    return block
