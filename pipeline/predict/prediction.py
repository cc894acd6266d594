"""`selftrain predict`: what a model says of each image of a folder or archive, exactly once, also after kills."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline import __version__
from pipeline.arrays import I64Array
from pipeline.config import Evaluate, Runtime, Split
from pipeline.errors import UserError
from pipeline.evaluate.ensemble import check_others, columns_of
from pipeline.evaluate.on_demand import TestRead
from pipeline.evaluate.patches import in_fingerprint
from pipeline.evaluate.predictor import open_predictor
from pipeline.files import as_utf8, write_csv
from pipeline.models.champion import pinned
from pipeline.models.format import model_digest, read_info
from pipeline.predict.batch import Batch, Member, predict_batch, read_batch
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
from pipeline.shards.decode import RESIZE_VERSION
from pipeline.shards.index import BadImages
from pipeline.shards.values import Survey, merge
from pipeline.stages.lock import run_lock
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
    others: tuple[Path, ...] = ()
    """More models of the same classes, whose probabilities are averaged with the model's."""


@dataclass(frozen=True)
class Done:
    """What a prediction wrote."""

    num_rows: int
    bad: dict[str, str] = field(default_factory=dict)
    """Images that have no row, with the reason."""
    left_out: Path | None = None
    """The list of them; None if there are none."""


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
    if wanted.features is not None and wanted.others:
        raise UserError("--features are those of one model; leave --with or --features out")
    paths = [pinned(path) for path in (model_path, *wanted.others)]
    check_others(paths)
    with open_images(images_path, wanted.split, wanted.zip_encoding) as images:
        tests = [TestRead.of(path) for path in paths] if "test" in images.splits else []
        classes = read_info(paths[0]).classes
        columns = [columns_of(read_info(path).classes, classes, path, model_path) for path in paths]
        record = {
            "model": model_digest(paths[0]),
            **({"others": [model_digest(path) for path in paths[1:]]} if wanted.others else {}),
            "images": images.fingerprint,
            "features": str(wanted.features.absolute()) if wanted.features else None,
            **{key: getattr(wanted, key) for key in ("top_k", "probabilities")},
            **evaluate.model_dump(mode="json", include={"batch_size", "flip"}),
            **in_fingerprint(evaluate),
            "precision": runtime.precision,
            "selftrain": __version__,
            "resize": RESIZE_VERSION,
        }
        torch.set_num_threads(max(runtime.threads, 1))
        members = [(open_predictor(path, evaluate, runtime), at) for path, at in zip(paths, columns, strict=True)]
        with run_lock(folder):
            try:
                begin(folder, record, files, overwrite=wanted.overwrite)
                parts = _make_parts(members, images, wanted, evaluate.batch_size, folder, progress)
                for test in (test for test in tests if test is not None):
                    test.log(images_path, len(images))
                done = _join(parts, classes, images, wanted)
            finally:
                if not has_begun(folder):
                    remove_folder(folder)
            remove_folder(folder)
    return done


# ------------------------------------------------------------------------------------------------------------ the parts


def _make_parts(
    members: Sequence[Member],
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

        def read(rows: I64Array) -> Batch:
            return read_batch(images, rows, [predictor for predictor, _ in members], pool)

        every = (
            np.arange(start, min(start + batch_size, len(images)))
            for number in missing
            for start in range(number * size, min((number + 1) * size, len(images)), batch_size)
        )
        batches = read_ahead(every, read)
        for number, group in itertools.groupby(batches, lambda item: int(item[0][0]) // size):
            parts = []
            for rows, batch in group:
                parts.append(
                    predict_batch(
                        members,
                        batch,
                        wanted.top_k,
                        probabilities=wanted.probabilities,
                        features=wanted.features is not None,
                    )
                )
                done += len(rows)
                progress(done, len(images))
            part = _joined(parts)
            survey = _checked(survey, part, images, wanted)
            write_part(paths[number], part)
    return paths


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
