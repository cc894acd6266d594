"""The label stage: a teacher's pass over the unlabeled images, which writes one label file per shard."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import semantic
from pipeline.evaluate.patches import as_text
from pipeline.evaluate.predictor import batches_of
from pipeline.files import Json
from pipeline.labels.on_val import ON_VAL, write_on_val
from pipeline.labels.store import LabelRows, label_path, label_provenance, read_labels, summarize, write_labels
from pipeline.labels.teachers import Committee, calibrate, open_teachers, teacher_digest
from pipeline.shards.dataset import Dataset, Shard, open_split
from pipeline.shards.mirror import fetched
from pipeline.stages import progress
from pipeline.stages.adopt import adopt
from pipeline.stages.fingerprint import StageInputs, digest
from pipeline.stages.folder import append_timing, stage_record
from pipeline.stages.jobs import LabelJob
from pipeline.stages.kinds import kind_of
from pipeline.stages.part import parts_of
from pipeline.stages.preamble import Stage
from pipeline.threads import read_ahead

log = logging.getLogger("selftrain.label")


def label_inputs(job: LabelJob) -> StageInputs:
    """The settings and inputs that the labels are a function of. Round and ranks are not among them: the same teacher
    gives the same rows. Val is one of them if the temperature is fitted on it."""
    config = {**semantic(job.label), "precision": job.runtime.precision, "data": semantic(job.data)}
    inputs = {f"teacher{i}": teacher_digest(job, path) for i, path in enumerate(job.teachers)}
    for number, teacher in enumerate(job.teachers):
        if teacher in job.features:
            provenance = stage_record(job.features[teacher])["outputs"]["provenance"]
            inputs[f"features{number}"] = digest(provenance)
    if job.label.temperature == "auto":
        inputs["val"] = open_split(job.data, "val").fingerprint
    inputs["unlabeled"] = open_split(job.data, "unlabeled").fingerprint
    return StageInputs(config, inputs)


def run_label(job: LabelJob, stage: Stage) -> None:
    """Label every unlabeled image with EMA weights, in eval mode, at each teacher's own resolution, without noise.

    A batch never crosses a shard, and ranks take whole shards, so the rows do not depend on the number of ranks (with
    equal threads). A shard is not labeled again if its label file exists in this folder, in a sibling from before new
    shards came, in the folder of another round, or in that of a part. A part labels its share of the shards.

    Raises:
        UserError: a teacher is missing or knows other classes, or another teacher made the labels in the folder.
        Interrupted: a signal stopped it between two batches; finished shards stay.
    """
    dataset = open_split(job.data, "unlabeled")
    teachers = open_teachers(job, dataset)
    temperatures, figures, on_val = calibrate(teachers, job, lambda: stage.check_stop("on val; nothing is labeled yet"))
    if on_val is not None and stage.ranks.is_main:
        write_on_val(job.out, on_val)
    committee = Committee(teachers, dataset, temperatures)
    provenance = label_provenance(
        teachers=[stage.inputs.inputs[f"teacher{i}"] for i in range(len(job.teachers))],
        features=[stage.inputs.inputs.get(f"features{i}", "") for i in range(len(job.teachers))],
        temperatures=temperatures,
        view=as_text(job.label),
        precision=job.runtime.precision,
        flip=job.label.flip,
        batch_size=job.label.batch_size,
        top_k=job.label.top_k,
        num_classes=len(dataset.classes),
        version=kind_of(job).version,
    )
    shards = job.part.share(dataset.shards) if job.part else dataset.shards
    mine = shards[stage.ranks.rank :: stage.ranks.number]
    done = num_labeled = 0

    def is_labeled(shard: Shard) -> bool:
        """Whether its label file is there already. If not, its tar is here from now on, if it is remote."""
        path, expected = label_path(job.out, shard.name), {**provenance, "shard": shard.sha256}
        if path.exists():
            read_labels(path, expected)
            return True
        if adopt(path, _siblings(job.whole), partial(read_labels, expected=expected)):
            return True
        if set(job.teachers) - job.features.keys():  # probes see no images
            fetched(shard.path)
        return False

    for shard, labeled in read_ahead(mine, is_labeled):
        started = time.monotonic()
        if not labeled:
            rows = _label_shard(job, stage, dataset, shard, committee)
            write_labels(label_path(job.out, shard.name), rows, {**provenance, "shard": shard.sha256})
            num_labeled += 1
        done += shard.num_rows
        seconds = (time.monotonic() - started) / stage.ranks.number  # ranks work in parallel, and lines are summed
        append_timing(job.out, done, seconds, shard.num_rows)
        progress.report(job.out, done, sum(s.num_rows for s in mine), "images")
    who = "" if stage.ranks.number == 1 else f" by the first of {stage.ranks.number} processes"
    log.info("%d shards are labeled now%s, %d were labeled before", num_labeled, who, len(mine) - num_labeled)
    files = [label_path(job.out, shard.name).name for shard in shards]
    outputs: dict[str, Json] = {
        "provenance": provenance,
        "classes": digest(dataset.classes),
        "num_samples": sum(s.num_rows for s in shards),
    }
    if on_val is not None:
        files.append(ON_VAL)
        outputs["val"] = figures
    end = stage.leave if job.part else stage.finish
    end(files, **outputs)


def _siblings(folder: Path) -> Iterable[Path]:
    """The label stages whose files may serve: of any round, and from before new shards came, with their parts. So no
    image is labeled again because new shards came, or because a teacher stays for another round."""
    folder = folder.absolute()
    rounds = folder.parent.parent
    stages = rounds.glob("*/label-*") if rounds.name == "rounds" else folder.parent.glob("label-*")
    return (found for stage in {folder, *stages} for found in (stage, *parts_of(stage)))


def _label_shard(job: LabelJob, stage: Stage, dataset: Dataset, shard: Shard, committee: Committee) -> LabelRows:
    summaries: list[dict[str, Tensor]] = []
    rows = np.arange(shard.start, shard.start + shard.num_rows, dtype=np.int64)
    for _, seen in read_ahead(batches_of(rows, job.label.batch_size), committee.read):
        stage.check_stop(f"in shard {shard.name}; the shards before it are labeled")
        summaries.append(summarize(committee.logits(seen), job.label.top_k))
    # This is the only host sync per shard; until here a GPU has work queued.
    columns = {k: torch.cat([s[k] for s in summaries]).cpu().numpy() for k in summaries[0]}
    return LabelRows(keys=[dataset.key(int(row)) for row in rows], ids=dataset.ids[rows], **columns)
