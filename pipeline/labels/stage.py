"""The label stage: a teacher's pass over the unlabeled images, which writes one label file per shard."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.arrays import I64Array
from pipeline.config import semantic
from pipeline.errors import UserError
from pipeline.evaluate.predictor import Predictor, mean_logits, reader_of
from pipeline.files import atomic_file
from pipeline.labels.store import LabelRows, label_path, label_provenance, read_labels, summarize, write_labels
from pipeline.models.format import load_model, model_digest
from pipeline.shards.dataset import Dataset, Shard, open_split
from pipeline.shards.reader import Reader
from pipeline.stages import progress
from pipeline.stages.fingerprint import StageInputs
from pipeline.stages.folder import append_timing
from pipeline.stages.jobs import LabelJob
from pipeline.stages.machine import device_of
from pipeline.stages.preamble import Stage
from pipeline.threads import read_ahead

Seen = tuple[int, str]


def label_inputs(job: LabelJob) -> StageInputs:
    """The settings and inputs that the labels are a function of. Round and ranks are not among them: the same teacher
    gives the same rows."""
    config = {**semantic(job.label), "precision": job.runtime.precision, "data": semantic(job.data)}
    inputs = {f"teacher{i}": model_digest(path) for i, path in enumerate(job.teachers)}
    inputs["unlabeled"] = open_split(job.data, "unlabeled").fingerprint
    return StageInputs(config, inputs)


def run_label(job: LabelJob, stage: Stage) -> None:
    """Label every unlabeled image with EMA weights, in eval mode, at each teacher's own resolution, without noise.

    A batch never crosses a shard, and ranks take whole shards, so the rows do not depend on the number of ranks (with
    equal threads). A shard is not labeled again if its label file exists in this folder, in a sibling from before new
    shards came, or in the folder of another round.

    Raises:
        UserError: a teacher is missing or knows other classes, or another teacher made the labels in the folder.
        Interrupted: a signal stopped it between two batches; finished shards stay.
    """
    dataset = open_split(job.data, "unlabeled")
    predictors = _predictors(job, dataset)
    provenance = label_provenance(
        teachers=[stage.inputs.inputs[f"teacher{i}"] for i in range(len(job.teachers))],
        view="center",
        precision=job.runtime.precision,
        flip=job.label.flip,
        batch_size=job.label.batch_size,
        top_k=job.label.top_k,
        num_classes=len(dataset.classes),
    )
    readers = {_seen(p): reader_of(p.info, dataset, job.data) for p in predictors}
    mine = list(dataset.shards)[stage.ranks.rank :: stage.ranks.number]
    done = 0
    for shard in mine:
        started = time.monotonic()
        path = label_path(job.out, shard.name)
        expected = {**provenance, "shard": shard.sha256}
        if path.exists():
            read_labels(path, expected)
        elif not _adopt(path, expected):
            rows = _label_shard(job, stage, dataset, shard, predictors, readers)
            write_labels(path, rows, expected)
        done += shard.num_rows
        seconds = (time.monotonic() - started) / stage.ranks.number  # ranks work in parallel, and lines are summed
        append_timing(job.out, done, seconds, shard.num_rows)
        progress.report(job.out, done, sum(s.num_rows for s in mine), "images")
    files = [label_path(job.out, shard.name).name for shard in dataset.shards]
    stage.finish(files, provenance=provenance, num_samples=len(dataset))


def _seen(predictor: Predictor) -> Seen:
    """What tells images apart that teachers see: equal ones are read once."""
    return predictor.info.read_size, predictor.info.interpolation


def _predictors(job: LabelJob, dataset: Dataset) -> list[Predictor]:
    result = []
    for path in job.teachers:
        model, info = load_model(path)
        if info.classes != dataset.classes:
            raise UserError(
                f"teacher {path} knows other classes than the data ({', '.join(info.classes[:5])}, ... against "
                f"{', '.join(dataset.classes[:5])}, ...); label with a teacher trained on these classes"
            )
        result.append(
            Predictor(
                model,
                info,
                device=device_of(job.runtime),
                precision=job.runtime.precision,
                flip=job.label.flip,
            )
        )
    return result


def _adopt(path: Path, expected: dict[str, str]) -> bool:
    """Take over the label file of another label stage, of any round, if its provenance is the same.

    So no image is labeled again because new shards came, or because a teacher stays for another round.
    """
    folder = path.parent.absolute()
    rounds = folder.parent.parent
    others = rounds.glob("*/label-*") if rounds.name == "rounds" else folder.parent.glob("label-*")
    for other in sorted(others):
        candidate = other / path.name
        if other == folder or not candidate.exists():
            continue
        try:
            read_labels(candidate, expected)
        except UserError:  # of another teacher, or of another shard with that name
            continue
        try:
            os.link(candidate, path)
        except OSError:  # not every file system has links
            with atomic_file(path) as file, open(candidate, "rb") as source:
                shutil.copyfileobj(source, file)
        return True
    return False


def _label_shard(
    job: LabelJob,
    stage: Stage,
    dataset: Dataset,
    shard: Shard,
    predictors: list[Predictor],
    readers: dict[Seen, Reader],
) -> LabelRows:
    summaries: list[dict[str, Tensor]] = []
    rows = np.arange(shard.start, shard.start + shard.num_rows, dtype=np.int64)
    batches = (rows[start : start + job.label.batch_size] for start in range(0, len(rows), job.label.batch_size))

    def read(batch: I64Array) -> dict[Seen, Tensor]:
        return {seen: predictors[0].read(reader, batch) for seen, reader in readers.items()}

    for _, images in read_ahead(batches, read):
        stage.check_stop(f"in shard {shard.name}; the shards before it are labeled")
        logits = [p.logits(images[_seen(p)]) for p in predictors]
        summaries.append(summarize(mean_logits(logits), job.label.top_k))
    # This is the only host sync per shard; until here a GPU has work queued.
    columns = {k: torch.cat([s[k] for s in summaries]).cpu().numpy() for k in summaries[0]}
    return LabelRows(keys=[dataset.key(int(row)) for row in rows], ids=dataset.ids[rows], **columns)
