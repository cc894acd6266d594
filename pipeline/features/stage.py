"""The embed stage: one pass of a frozen encoder over the images, which writes one feature file per shard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np

from pipeline.arrays import F32Array
from pipeline.config import semantic
from pipeline.evaluate.patches import Pyramid
from pipeline.evaluate.predictor import batches_of, reader_of
from pipeline.features.encoder import Encoder, build_encoder, encoder_settings, probe_of
from pipeline.features.store import feature_path, read_features, write_features
from pipeline.models.weights import start_inputs
from pipeline.shards.dataset import Shard, open_split
from pipeline.shards.reader import Reader
from pipeline.stages import progress
from pipeline.stages.adopt import adopt
from pipeline.stages.fingerprint import StageInputs, digest
from pipeline.stages.folder import append_timing
from pipeline.stages.jobs import EmbedJob
from pipeline.stages.kinds import kind_of
from pipeline.stages.machine import device_of
from pipeline.stages.preamble import Stage
from pipeline.threads import read_ahead


def embed_inputs(job: EmbedJob) -> StageInputs:
    """The settings and inputs that the features are a function of."""
    config = {
        "encoder": encoder_settings(job.training),
        "precision": job.runtime.precision,
        "data": semantic(job.data),
    }
    inputs: dict[str, str] = {split: open_split(job.data, split).fingerprint for split in job.splits}
    return StageInputs(config, {**inputs, **start_inputs(job.training)})


def run_embed(job: EmbedJob, stage: Stage) -> None:
    """Store the features of every image, in eval mode and without noise.

    A batch never crosses a shard, and ranks take whole shards. A shard is not embedded again if its file exists in this
    folder or in a sibling, so that new shards embed only themselves.

    Raises:
        UserError: the encoder is missing, does not fit, or has no features that a classifier reads.
        Interrupted: a signal stopped it between two batches; finished shards stay.
    """
    datasets = [open_split(job.data, split) for split in job.splits]
    model, info = build_encoder(job.training, datasets[0].classes, {})
    probe, device = probe_of(job.training), device_of(job.runtime)
    encoder = Encoder(model, info, device=device, precision=job.runtime.precision, flip=probe.flip)
    encoder.check()
    provenance = {
        "encoder": digest(encoder_settings(job.training)),
        "precision": job.runtime.precision,
        "version": str(kind_of(job).version),
    }
    work = [(dataset, shard) for dataset in datasets for shard in dataset.shards]
    mine, done = work[stage.ranks.rank :: stage.ranks.number], 0
    total = sum(shard.num_rows for _, shard in mine)
    readers = {dataset.name: reader_of(info, dataset, job.data) for dataset in datasets}
    for dataset, shard in mine:
        started, before = time.monotonic(), done
        path = feature_path(job.out, dataset.name, shard.name)
        check = partial(read_features, expected={**provenance, "shard": shard.sha256})
        if path.exists():
            check(path)
        elif not adopt(path, job.out.absolute().parent.glob("embed-*"), check):
            parts = []
            for features in _embed_shard(stage, encoder, shard, readers[dataset.name], probe.batch_size):
                parts.append(features)
                progress.report(job.out, before + sum(map(len, parts)), total, "images")
            ids = dataset.ids[shard.start : shard.start + shard.num_rows]
            write_features(path, ids, np.concatenate(parts), {**provenance, "shard": shard.sha256})
        done += shard.num_rows
        append_timing(job.out, done, (time.monotonic() - started) / stage.ranks.number, shard.num_rows)
        progress.report(job.out, done, total, "images")
    files = [feature_path(job.out, dataset.name, shard.name).name for dataset, shard in work]
    stage.finish(files, provenance=provenance, num_samples=sum(map(len, datasets)))


def _embed_shard(
    stage: Stage, encoder: Encoder, shard: Shard, reader: Reader | Pyramid, batch_size: int
) -> Iterator[F32Array]:
    """Yield the features [B, D] of a shard's images, batch after batch."""
    rows = np.arange(shard.start, shard.start + shard.num_rows, dtype=np.int64)
    for _, images in read_ahead(batches_of(rows, batch_size), partial(encoder.read, reader)):
        stage.check_stop(f"in shard {shard.name}; the shards before it are stored")
        yield encoder.features(images).cpu().numpy()
