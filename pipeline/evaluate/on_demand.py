"""The evaluation of a model on a user's images: a packed folder, or a folder, tar or zip of class folders."""

from __future__ import annotations

import contextlib
import datetime
import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Data, Evaluate, Runtime, Split, changed, load_config
from pipeline.errors import UserError, did_you_mean
from pipeline.evaluate.ensemble import check_others, columns_of, mean_log_probs
from pipeline.evaluate.metrics import Metrics, compute_metrics
from pipeline.evaluate.per_class import PerClass, per_class, taken_for
from pipeline.evaluate.predictions import Predictions, predictions_of
from pipeline.evaluate.predictor import predict_by
from pipeline.files import append_json, open_to_append
from pipeline.models.champion import origin_of, pinned
from pipeline.models.format import read_info
from pipeline.packing.pack import pack
from pipeline.shards.dataset import Dataset, open_split, warn_of_left_out
from pipeline.shards.manifest import MANIFEST
from pipeline.shards.tar import walk
from pipeline.stages.lock import find_run
from pipeline.stages.machine import precision_here, resolve

log = logging.getLogger("selftrain.evaluate")

TEST_READS = "test_reads.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What a model, or the mean of several, was found to do on a split."""

    metrics: Metrics
    answers: Predictions
    classes: tuple[str, ...]
    """The names of the model's classes, [C]."""
    members: Mapping[str, Metrics] = field(default_factory=dict)
    """Path of a model -> its own figures, where this is the mean of several."""

    @property
    def of_classes(self) -> PerClass:
        """The figures of each class."""
        return per_class(self.answers.label, self.answers.pred, len(self.classes))

    def taken_for(self, number: int) -> dict[str, int]:
        """The wrong answers for images of one class: class name -> number of images, the most frequent first."""
        found = taken_for(self.answers.label, self.answers.pred, number)
        return {self.classes[other]: count for other, count in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The metrics as JSON values, and per class its figures and its row of the confusion matrix without zeros."""
        found = self.of_classes
        figures = {"precision": found.precision, "recall": found.recall, "f1": found.f1}
        classes = [
            {
                "name": name,
                "num_samples": int(found.count[i]),
                **{figure: None if np.isnan(values[i]) else float(values[i]) for figure, values in figures.items()},
                "right": int(found.right[i]),
                "taken_for": self.taken_for(i),
            }
            for i, name in enumerate(self.classes)
        ]
        members = [{"model": path, **metrics.to_json()} for path, metrics in self.members.items()]
        return {**self.metrics.to_json(), "classes": classes, **({"members": members} if members else {})}


def how_to_see(model: Path) -> tuple[Evaluate, Runtime]:
    """How a model is evaluated here; one of a run, in the way of the run, but for what the run reports beside."""
    if (run := find_run(model)) is None:
        return Evaluate(), resolve(Runtime())
    config = load_config(run / "config.yaml")
    how = changed(config.evaluate, mc_dropout=0)
    return how, resolve(Runtime(precision=precision_here(config.runtime.precision)))


def evaluate_on(
    model_path: Path,
    data_path: Path,
    split: Split,
    evaluate: Evaluate,
    runtime: Runtime,
    others: Sequence[Path] = (),
) -> Evaluation:
    """What a model does on a split of a packed folder, or on all images of an unpacked one.

    Classes are matched by name. If the model is in a run, or was promoted from one, a read of test is logged in the
    run's test_reads.jsonl.

    Args:
        model_path: A run folder, a stage folder, a registry of champions, an exported file or a checkpoint.
        data_path: A packed folder, or any image folder, tar or zip.
        split: The split of a packed folder.
        evaluate: How images are shown to the models.
        runtime: Where they run.
        others: More models of the same classes. The figures are then those of the mean of all probabilities, and those
            of each are beside them. Each sees images as it was trained to.

    Raises:
        UserError: there is no model or no image, the data has a class that the model does not know, the models know
            different classes, or a read of test cannot be logged; nothing is read then.
    """
    if split == "unlabeled":
        raise UserError("--split unlabeled has no labels to evaluate against; use val or test")
    paths = [pinned(path) for path in (model_path, *others)]
    check_others(paths)
    tests = [TestRead.of(path) if split == "test" else None for path in paths]
    classes = read_info(paths[0]).classes
    columns = [columns_of(read_info(path).classes, classes, path, model_path) for path in paths]
    torch.set_num_threads(max(runtime.threads, 1))

    with _as_data(data_path, split, classes, model_path) as data:
        dataset = open_split(data, split)
        warn_of_left_out(dataset)
        labels = labels_as(dataset, classes, data_path)
        each = [
            predict_by(path, dataset, data, evaluate, runtime, mc_dropout=evaluate.mc_dropout)[:, at]
            for path, at in zip(paths, columns, strict=True)
        ]
        log_probs = mean_log_probs(each) if others else each[0]
        members = {str(path): compute_metrics(alone, labels) for path, alone in zip(paths, each, strict=True)}
        metrics, answers = compute_metrics(log_probs, labels), predictions_of(log_probs, labels)
        found = Evaluation(metrics, answers, classes, members if others else {})
    for path, test in zip(paths, tests, strict=True):
        if test is not None:
            of_mean = {"ensemble_top1": metrics.top1} if others else {}
            test.log(data_path, metrics.num_samples, top1=members[str(path)].top1, **of_mean)
    return found


@contextlib.contextmanager
def _as_data(path: Path, split: Split, classes: tuple[str, ...], model: Path) -> Iterator[Data]:
    """What a path holds, as the data of a config: a packed folder, tars with labels, or images in class folders."""
    if (path / MANIFEST).exists():
        yield Data(root=path)
        return
    with tempfile.TemporaryDirectory(prefix="selftrain-") as folder:
        if _holds_labels(path):
            (Path(folder) / "classes.txt").write_text("\n".join(classes) + "\n")
            yield Data.model_validate({split: (path,), "classes": Path(folder) / "classes.txt", "cache": "never"})
            return

        def command(images: Path, one: Split) -> str:
            return f"selftrain evaluate {shlex.quote(str(model))} {shlex.quote(str(images))} --split {one}"

        report = pack(path, Path(folder) / "packed", split=split, known=classes, command=command)
        if report.ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in report.ignored.items())
            log.warning("%s: files that are no images are left out: %s", path, kinds)
        yield Data(root=Path(folder) / "packed", cache="never")


def _holds_labels(path: Path) -> bool:
    """Whether a path is a tar of images with .cls files, or a folder of such tars."""
    if path.is_dir() and any(inside.is_dir() for inside in path.iterdir()):  # of classes, beside which a tar may lie
        return False
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.is_file() else []
    try:
        return any(name.lower().endswith(".cls") for tar in tars for name, _, _ in walk(tar))
    except UserError:  # no tar: `pack` says what it is
        return False


def labels_as(dataset: Dataset, classes: tuple[str, ...], data_path: Path) -> np.ndarray:
    """The dataset's labels [N] as class ids of a model that knows these classes, [N]; they are matched by name.

    Raises:
        UserError: an image has a class that the model does not know.
    """
    present = np.unique(dataset.labels)
    unknown = [dataset.classes[i] for i in present if dataset.classes[i] not in classes]
    if unknown:
        hint = did_you_mean(unknown[0], classes)
        raise UserError(f"{data_path} has class {unknown[0]!r}, unknown to the model; {hint}")
    ids = np.array([classes.index(name) if name in classes else -1 for name in dataset.classes], np.int32)
    return np.asarray(ids[dataset.labels])


@dataclass(frozen=True)
class TestRead:
    """A read of test by a model of a run, which the run's test_reads.jsonl is to tell."""

    run: Path
    model: Path

    @classmethod
    def of(cls, model: Path) -> TestRead | None:
        """The read to log before its results are shown; None if the model is in no run, nor promoted from one.

        Raises:
            UserError: it cannot be logged.
        """
        run = find_run(origin_of(model))
        if run is None:
            return None
        path = run / TEST_READS
        try:
            open_to_append(path).close()
        except OSError as error:
            raise UserError(
                f"this read of test cannot be logged in {path}: {error.strerror}; fix permissions, or evaluate on val"
            ) from error
        return cls(run, model)

    def log(self, data: Path, num_samples: int, **figures: float) -> None:
        """Write the line of the read."""
        path = self.model.absolute()
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "model": str(path.relative_to(self.run) if path.is_relative_to(self.run) else path),
            "data": str(data.absolute()),
            **figures,
            "num_samples": num_samples,
        }
        append_json(self.run / TEST_READS, line)
